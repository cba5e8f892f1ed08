#include "linear.h"

#include <algorithm>
#include <cstring>

namespace llamahome {

void LinearWork::reserve(int tokens, const std::vector<const Linear*>& layers) {
  int inputs = 0, rank = 0;
  for (const Linear* linear : layers) {
    inputs = std::max(inputs, std::max(linear->inputs, linear->data.inputs));
    for (const AdapterData& adapter : linear->adapters) rank = std::max(rank, adapter.rank);
  }
  const auto grow = [&](Quantized& to, size_t count) {
    to.values.get(count * inputs);
    to.bytes.get(count * inputs / 4 + 1);
    to.scales.get(count * (inputs / kGroup + 1));
    to.offsets.get(count * (inputs / kGroup + 1));
    to.low.get(count * rank);
  };
  grow(shared_, tokens);
  for (Quantized& own : own_) grow(own, kAlone);
}

const Activations& LinearWork::prepare(const Linear& linear, const LinearInput& in, int id) {
  const bool alone = in.tokens <= kAlone;
  Quantized& to = alone ? own_[id] : shared_;
  if (alone || id == 0) allocate(to, linear, in.tokens, in.adapters);
  if (!alone) team_.barrier();
  const int step = alone ? 1 : team_.size();
  for (int m = alone ? 0 : id; m < in.tokens; m += step) {
    const int adapter = in.adapters == nullptr ? -1 : static_cast<int>(in.adapters[m]);
    prepare_token(to, linear, in.from + static_cast<size_t>(m) * in.stride,
                  in.norm == nullptr ? nullptr : in.norm->of(adapter), m);
  }
  if (!alone) team_.barrier();
  return to.view;
}

void LinearWork::prepare_token(Quantized& to, const Linear& linear, const float* x,
                               const float* norm_weight, int m) {
  const int inputs = linear.inputs, padded = linear.data.inputs;
  float* kept = to.values.data() + static_cast<size_t>(m) * inputs;
  if (norm_weight != nullptr) {
    kernels_->rms_norm(x, norm_weight, eps_, inputs, kept);
  } else {
    std::memcpy(kept, x, sizeof(float) * inputs);
  }
  if (linear.int8()) {
    const size_t groups = padded / kGroup;
    int8_t* bytes = reinterpret_cast<int8_t*>(to.bytes.data()) + static_cast<size_t>(m) * padded;
    int32_t* offsets = reinterpret_cast<int32_t*>(to.offsets.data()) + m * groups;
    kernels_->quantize(kept, inputs, padded, bytes, to.scales.data() + m * groups, offsets);
  }
  if (to.view.adapters != nullptr && to.adapter_of[m] != nullptr) {
    kernels_->dots(to.adapter_of[m]->down, kept, to.adapter_of[m]->rank, inputs,
                   const_cast<float*>(to.low_of[m]));
  }
}

void LinearWork::allocate(Quantized& to, const Linear& linear, int tokens,
                          const int64_t* adapters) {
  const size_t padded = linear.data.inputs, groups = padded / kGroup;
  to.view = Activations();
  to.view.values = to.values.get(static_cast<size_t>(tokens) * linear.inputs);
  if (linear.int8()) {
    to.view.quantized = reinterpret_cast<int8_t*>(to.bytes.get((tokens * padded + 3) / 4));
    to.view.scales = to.scales.get(tokens * groups);
    to.view.offsets = reinterpret_cast<int32_t*>(to.offsets.get(tokens * groups));
  }
  int rank = 0;
  for (const AdapterData& adapter : linear.adapters) rank = std::max(rank, adapter.rank);
  if (rank == 0 || adapters == nullptr) return;
  float* low = to.low.get(static_cast<size_t>(tokens) * rank);
  to.low_of.assign(tokens, nullptr);
  to.adapter_of.assign(tokens, nullptr);
  for (int m = 0; m < tokens; ++m) {
    const int64_t index = adapters[m];
    if (index < 0 || index >= static_cast<int64_t>(linear.adapters.size())) continue;
    if (linear.adapters[index].rank == 0) continue;
    to.adapter_of[m] = &linear.adapters[index];
    to.low_of[m] = low + static_cast<size_t>(m) * rank;
  }
  to.view.low = to.low_of.data();
  to.view.adapters = to.adapter_of.data();
}

void LinearWork::run(const LinearCall& call, const LinearInput& in, const LinearOutput& out,
                     Step& step, int id) {
  const Linear& linear = *call.linear;
  const Activations& prepared = prepare(linear, in, id);
  const int pairs = linear.pairs();
  const auto multiply = [&](int first, int count, const void* after) {
    kernels_->linear(linear.data, prepared, in.tokens, first, count, out.epilogue, out.to,
                     out.stride, after);
  };
  if (few(in.tokens)) {
    const int first = share(pairs, id), last = share(pairs, id + 1);
    if (last > first) multiply(first, last - first, call.next->pair(share(call.next->pairs(), id)));
  } else {
    const int chunk = std::max(1, pairs / (team_.size() * 8));
    for (int first = step.take(call.layer, call.phase, chunk); first < pairs;
         first = step.take(call.layer, call.phase, chunk)) {
      multiply(first, std::min(chunk, pairs - first), nullptr);
    }
  }
  team_.barrier();
}

}  // namespace llamahome
