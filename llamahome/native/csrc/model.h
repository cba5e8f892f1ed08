// A Llama over slots on the CPU: one parallel region per step, for any mix of prefill and decode.
// Axes: M tokens of a step, B rows, L tokens that need an output, V vocabulary.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "linear.h"

namespace llamahome {

inline const Kernels* choose_kernels(const std::string& isa) {
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), portable_kernels()}) {
    if (kernels != nullptr && (isa == "auto" || isa == kernels->name)) return kernels;
  }
  throw std::runtime_error("isa='" + isa + "' does not run on this machine; use 'auto'");
}

struct Layer {
  Norm attention_norm, mlp_norm;
  HeadNorms head_norms;
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
  // Weights and planes, given before the first step.
  std::vector<Layer> layers;
  std::vector<LayerPlanes> planes;  // by layer
  Embedding embedding;
  Norm final_norm;
  const Linear* head = nullptr;

  Model(const Shape& shape, int threads, const std::string& isa)
      : shape_(shape),
        kernels_(choose_kernels(isa)),
        team_(threads),
        linear_(kernels_, team_, shape.eps),
        attention_(kernels_, team_, shape) {
    if (shape.head_dim % kLanes != 0 || shape.group() > kMaxQueries) {
      throw std::runtime_error("head_dim must be a multiple of 16, a group at most " +
                               std::to_string(kMaxQueries) + " heads");
    }
  }

  const char* isa() const { return kernels_->name; }
  Team& team() { return team_; }
  const Shape& shape() const { return shape_; }
  int outputs() const { return head->data.outputs; }

  void set_rotary(const float* cos, const float* sin) { attention_.set_rotary(cos, sin); }

  // Runs a step; writes the final hidden states (L, hidden), after the norm, and the logits
  // (L, V padded) of the tokens `wanted`.
  void forward(const StepInput& input, const int64_t* wanted, int count, float* hidden,
               float* logits) {
    begin(input);
    team_.run([&](int id) {
      embed(id);
      team_.barrier();
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        attend(layer, id);
        mlp(layer, id);
      }
      finish(wanted, count, hidden, logits, id);
    });
  }

  // Keeps the first `accepted` draft tokens of a row of the last step, after verification.
  void accept(int64_t row, int64_t accepted) {
    const Row& drafted = step_.rows.at(row);
    if (drafted.draft < 0 || accepted > drafted.tokens) {
      throw std::runtime_error("row " + std::to_string(row) + " has no " +
                               std::to_string(accepted) + " draft tokens");
    }
    attention_.accept(step_, layers.size(), drafted, accepted);
  }

 private:
  void begin(const StepInput& input) {
    read_rows(input);
    const size_t tokens = input.tokens;
    step_.x = x_.get(tokens * shape_.hidden);
    step_.qkv = qkv_.get(tokens * layers[0].qkv->data.outputs);
    step_.attended = attended_.get(tokens * shape_.attention());
    step_.mlp = mlp_.get(tokens * layers[0].gate_up->data.outputs / 2);
    step_.reset_counters(layers.size());
    attention_.begin(step_, planes);
    std::vector<const Linear*> read{head};
    for (const Layer& layer : layers) {
      read.insert(read.end(), {layer.qkv, layer.out, layer.gate_up, layer.down});
    }
    linear_.reserve(input.tokens, read);
  }

  void read_rows(const StepInput& input) {
    step_.tokens = input.tokens;
    step_.ids = input.ids;
    step_.adapters = input.adapters;
    step_.held = input.held;
    step_.mass_weights.assign(input.mass_weights, input.mass_weights + input.tokens);
    step_.rows.clear();
    step_.positions.clear();
    step_.drafted_rows = 0;
    int first = 0;
    for (int b = 0; b < input.rows; ++b) {
      const int64_t* column = input.row_columns + static_cast<int64_t>(b) * kRowColumns;
      const int tokens = static_cast<int>(column[kTokens]);
      const int draft = column[kDrafted] != 0 ? step_.drafted_rows++ : -1;
      step_.rows.push_back({.slot = static_cast<int>(column[kSlot]),
                            .first = first,
                            .tokens = tokens,
                            .max_mass = column[kMaxMass] != 0,
                            .draft = draft});
      for (int t = 0; t < tokens; ++t) step_.positions.push_back(column[kLength] + t);
      first += tokens;
    }
    if (first != input.tokens) {
      throw std::runtime_error("rows have " + std::to_string(first) + " tokens, ids " +
                               std::to_string(input.tokens));
    }
  }

  void embed(int id) {
    for (int m = id; m < step_.tokens; m += team_.size()) {
      float* to = step_.x + static_cast<size_t>(m) * shape_.hidden;
      const int64_t at = step_.ids[m] * shape_.hidden;
      if (embedding.floats != nullptr) {
        std::memcpy(to, embedding.floats + at, sizeof(float) * shape_.hidden);
      } else {
        kernels_->halves(embedding.halves + at, shape_.hidden, to);
      }
    }
  }

  void attend(size_t index, int id) {
    const Layer& layer = layers[index];
    const int stride = layer.qkv->data.outputs;
    linear_.run({layer.qkv, index, kQkv, layer.out},
                input(step_.x, shape_.hidden, &layer.attention_norm),
                {step_.qkv, stride, Epilogue::kStore}, step_, id);
    attention_.run(step_, {planes[index], layer.head_norms, index, stride}, id);
    linear_.run({layer.out, index, kOut, layer.gate_up},
                input(step_.attended, shape_.attention(), nullptr),
                {step_.x, shape_.hidden, Epilogue::kAdd}, step_, id);
  }

  void mlp(size_t index, int id) {
    const Layer& layer = layers[index];
    const int width = layer.gate_up->data.outputs / 2;
    const Linear* next = index + 1 < layers.size() ? layers[index + 1].qkv : head;
    linear_.run({layer.gate_up, index, kGateUp, layer.down},
                input(step_.x, shape_.hidden, &layer.mlp_norm),
                {step_.mlp, width, Epilogue::kSiluMul}, step_, id);
    linear_.run({layer.down, index, kDown, next}, input(step_.mlp, width, nullptr),
                {step_.x, shape_.hidden, Epilogue::kAdd}, step_, id);
  }

  // Input of a linear layer: all tokens of the step.
  LinearInput input(const float* from, int stride, const Norm* norm) const {
    return {from, stride, step_.tokens, step_.adapters, norm};
  }

  void finish(const int64_t* wanted, int count, float* hidden, float* logits, int id) {
    for (int i = id; i < count; i += team_.size()) {
      const int adapter = static_cast<int>(step_.adapters[wanted[i]]);
      kernels_->rms_norm(step_.x + wanted[i] * shape_.hidden, final_norm.of(adapter), shape_.eps,
                         shape_.hidden, hidden + static_cast<size_t>(i) * shape_.hidden);
    }
    team_.barrier();
    if (count == 0) return;
    linear_.run({head, layers.size(), kHead, layers[0].qkv},
                {hidden, shape_.hidden, count, nullptr, nullptr},
                {logits, outputs(), Epilogue::kStore}, step_, id);
  }

  const Shape shape_;
  const Kernels* kernels_;
  Team team_;
  LinearWork linear_;
  Attention attention_;
  Step step_;
  Buffer x_, qkv_, attended_, mlp_;
};

}  // namespace llamahome
