// Linear layers of a step: norm, quantisation, low-rank adapters, multiplication.
// Axes: M tokens, N outputs, K inputs.
#pragma once

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

// Weights of a norm: the model's, then each adapter's, null where it trained none.
struct Norm {
  std::vector<const float*> weights;

  const float* of(int adapter) const {
    const size_t index = static_cast<size_t>(adapter + 1);
    const bool own = index < weights.size() && weights[index] != nullptr;
    return weights[own ? index : 0];
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
  void reserve(int tokens, const std::vector<const Linear*>& layers);

  // Multiplies the tokens by a layer's weights, and ends in a barrier. All threads of the team call
  // it. With few tokens each thread has a fixed part of the outputs, and fetches the first weights
  // that it will read of `call.next` while it computes the last of these; with many, threads take
  // parts as they become free.
  void run(const LinearCall& call, const LinearInput& in, const LinearOutput& out, Step& step,
           int id);

 private:
  struct Quantized {
    Buffer values, scales, offsets, bytes, low;
    std::vector<const float*> low_of;
    std::vector<const AdapterData*> adapter_of;
    Activations view;
  };

  // Normalises and quantises the tokens, and applies the down projections of adapters. Up to kAlone
  // tokens each thread prepares its own copy, which is cheaper than a barrier.
  const Activations& prepare(const Linear& linear, const LinearInput& in, int id);
  void allocate(Quantized& to, const Linear& linear, int tokens, const int64_t* adapters);
  void prepare_token(Quantized& to, const Linear& linear, const float* x, const float* norm_weight,
                     int m);
  int share(int count, int id) const { return count * id / team_.size(); }

  static constexpr int kAlone = 4;

  const Kernels* kernels_;
  Team& team_;
  const float eps_;
  Quantized shared_;
  std::vector<Quantized> own_;
};

}  // namespace llamahome
