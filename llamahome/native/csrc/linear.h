// Linear layers of a step: norm, quantisation, low-rank adapters, multiplication.
// Axes: M tokens, N outputs, K inputs.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "step.h"
#include "team.h"

namespace llamahome {

struct Linear {
  LinearData data;
  std::vector<AdapterData> adapters;  // by index; rank 0 where an adapter does not change the layer
  int inputs = 0;                     // without padding

  bool int8() const { return data.int8_weight != nullptr; }
  int pairs() const { return data.outputs / (2 * kLanes); }
  const void* pair(int index) const {
    const size_t size = static_cast<size_t>(data.inputs) * 2 * kLanes;
    if (int8()) return data.int8_weight + index * size;
    return data.float_weight + index * size;
  }
};

// A linear layer, the counter of its work in the step, and the linear layer that follows.
struct LinearCall {
  const Linear* linear;
  size_t layer;
  Phase phase;
  const Linear* next;
};

// Tokens (M, stride), to be normalised first where there is a norm.
struct LinearInput {
  const float* from;
  int stride, tokens;
  const int64_t* adapters;  // (M,), or null where no adapter changes the layer
  const Norm* norm;         // or null
};

// (M, stride)
struct LinearOutput {
  float* to;
  int stride;
  Epilogue epilogue;
};

class LinearWork {
 public:
  LinearWork(const Kernels* kernels, Team& team, float eps)
      : kernels_(kernels), team_(team), eps_(eps), own_(team.size()) {}

  // Allocates all that threads will need: in the parallel region an error could not be raised.
  void reserve(int tokens, const std::vector<const Linear*>& layers) {
    int inputs = 0, rank = 0;
    for (const Linear* linear : layers) {
      inputs = std::max(inputs, std::max(linear->inputs, linear->data.inputs));
      for (const AdapterData& adapter : linear->adapters) rank = std::max(rank, adapter.rank);
    }
    const auto grow = [&](Quantized& to, size_t count) {
      const size_t groups = count * (inputs / kGroup + 1);
      to.view.values = to.values.get(count * inputs);
      to.view.quantized = reinterpret_cast<int8_t*>(to.bytes.get(count * inputs / 4 + 1));
      to.view.scales = to.scales.get(groups);
      to.view.offsets = reinterpret_cast<int32_t*>(to.offsets.get(groups));
      to.low.get(count * rank);
    };
    rank_ = rank;
    grow(shared_, tokens);
    for (Quantized& own : own_) grow(own, kAlone);
  }

  // Multiplies the tokens by a layer's weights, and ends in a barrier. All threads of the team call
  // it. With few tokens each thread has a fixed part of the outputs, and fetches the first weights
  // that it will read of `call.next` while it computes the last of these; with many, threads take
  // parts as they become free.
  void run(const LinearCall& call, const LinearInput& in, const LinearOutput& out, Step& step,
           int id) {
    const Linear& linear = *call.linear;
    const Activations& prepared = prepare(linear, in, id);
    const int pairs = linear.pairs();
    const auto multiply = [&](int first, int count, const void* after) {
      kernels_->linear(linear.data, prepared, in.tokens, first, count, out.epilogue, out.to,
                       out.stride, after);
    };
    if (few(in.tokens)) {
      const int first = share(pairs, id), last = share(pairs, id + 1);
      if (last > first)
        multiply(first, last - first, call.next->pair(share(call.next->pairs(), id)));
    } else {
      const int chunk = std::max(1, pairs / (team_.size() * 8));
      for (int first = step.take(call.layer, call.phase, chunk); first < pairs;
           first = step.take(call.layer, call.phase, chunk)) {
        multiply(first, std::min(chunk, pairs - first), nullptr);
      }
    }
    team_.barrier();
  }

 private:
  struct Quantized {
    Buffer values, scales, offsets, bytes, low;
    std::vector<const float*> low_of;
    std::vector<const AdapterData*> adapter_of;
    Activations view;
  };

  // Normalises and quantises the tokens, and applies the down projections of adapters. Up to kAlone
  // tokens each thread prepares its own copy, which is cheaper than a barrier.
  const Activations& prepare(const Linear& linear, const LinearInput& in, int id) {
    const bool alone = in.tokens <= kAlone;
    Quantized& to = alone ? own_[id] : shared_;
    if (alone || id == 0) choose_adapters(to, linear, in.tokens, in.adapters);
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

  void choose_adapters(Quantized& to, const Linear& linear, int tokens, const int64_t* adapters) {
    to.view.low = nullptr;
    to.view.adapters = nullptr;
    const int64_t count = static_cast<int64_t>(linear.adapters.size());
    if (count == 0 || adapters == nullptr) return;
    to.low_of.assign(tokens, nullptr);
    to.adapter_of.assign(tokens, nullptr);
    for (int m = 0; m < tokens; ++m) {
      const int64_t index = adapters[m];
      if (index < 0 || index >= count || linear.adapters[index].rank == 0) continue;
      to.adapter_of[m] = &linear.adapters[index];
      to.low_of[m] = to.low.data() + static_cast<size_t>(m) * rank_;
    }
    to.view.low = to.low_of.data();
    to.view.adapters = to.adapter_of.data();
  }

  void prepare_token(Quantized& to, const Linear& linear, const float* x, const float* norm_weight,
                     int m) {
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

  int share(int count, int id) const { return count * id / team_.size(); }

  static constexpr int kAlone = 4;

  const Kernels* kernels_;
  Team& team_;
  const float eps_;
  int rank_ = 0;  // the largest of all layers' adapters
  Quantized shared_;
  std::vector<Quantized> own_;
};

}  // namespace llamahome
