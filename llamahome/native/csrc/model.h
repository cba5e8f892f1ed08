// A Llama over slots on the CPU: one parallel region per step, for any mix of prefill and decode.
// Axes: M tokens of a step, B rows, L tokens that need an output, V vocabulary.
#pragma once

#include <string>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "plane.h"
#include "step.h"
#include "team.h"

namespace llamahome {

struct Layer {
  Norm attention_norm, mlp_norm;
  const Linear *qkv, *out, *gate_up, *down;
};

// (V, hidden), float32 or float16.
struct Embedding {
  const float* floats = nullptr;
  const uint16_t* halves = nullptr;
};

// A step as Python gives it; `ModelBinding::forward` says what the pointers hold.
struct StepInput {
  int tokens, rows;
  const int64_t *ids, *row_columns, *held, *adapters;
  const float* mass_weights;
};

class Model {
 public:
  Model(const Shape& shape, int threads, const std::string& isa);

  const char* isa() const { return kernels_->name; }
  Team& team() { return team_; }
  const Shape& shape() const { return shape_; }
  int outputs() const { return head_->data.outputs; }
  std::vector<LayerPlanes>& planes() { return planes_; }

  void add_layer(const Layer& layer);
  void set_ends(const Embedding& embedding, const float* norm, const Linear* head);
  void set_rotary(const float* cos, const float* sin) { attention_.set_rotary(cos, sin); }
  // Sets a norm that an adapter trained: one of a layer's, or the final one (layer -1).
  void set_adapter_norm(int64_t layer, bool mlp, int64_t adapter, const float* weight);

  // Runs a step; writes the final hidden states (L, hidden), after the norm, and the logits
  // (L, V padded) of the tokens `wanted`.
  void forward(const StepInput& input, const int64_t* wanted, int count, float* hidden,
               float* logits);
  // Keeps the first `accepted` draft tokens of a row of the last step, after verification.
  void accept(int64_t row, int64_t accepted);

 private:
  void begin(const StepInput& input);
  void read_rows(const StepInput& input);
  void embed(int id);
  void attend(size_t layer, int id);
  void mlp(size_t layer, int id);
  // Input of a linear layer: all tokens of the step.
  LinearInput input(const float* from, int stride, const Norm* norm) const {
    return {from, stride, step_.tokens, step_.adapters, norm};
  }
  void finish(const int64_t* wanted, int count, float* hidden, float* logits, int id);

  const Shape shape_;
  const Kernels* kernels_;
  Team team_;
  LinearWork linear_;
  Attention attention_;
  std::vector<Layer> layers_;
  std::vector<LayerPlanes> planes_;  // by layer
  Embedding embedding_;
  Norm final_norm_;
  const Linear* head_ = nullptr;
  Step step_;
  Buffer x_, qkv_, attended_, mlp_;
};

}  // namespace llamahome
