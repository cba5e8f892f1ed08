// One step of the model: its tokens, and the buffers and counters that the other files share.
// Axes: M tokens of a step, B rows, H query heads, G KV heads, D head_dim.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace llamahome {

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Steps of few tokens are bound by reading weights, those of many by computing.
inline bool few(int tokens) { return tokens <= 8; }

struct Shape {
  int hidden, heads, kv_heads, head_dim;
  float eps, scaling;

  int group() const { return heads / kv_heads; }
  int attention() const { return heads * head_dim; }
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

// Norms of each head's queries and keys, before they are rotated (Qwen3); empty in other models.
struct HeadNorms {
  Norm query, key;
};

// Columns of the tensors that describe a step, in the order of llamahome/native/columns.py.
enum RowColumn : int { kSlot, kTokens, kLength, kMaxMass, kDrafted, kRowColumns };
enum AcceptColumn : int { kRow, kAccepted, kAcceptColumns };

// A request's part of a step.
struct Row {
  int slot, first, tokens;  // `first` is an index into the step's tokens
  bool max_mass;            // whether mass is the max over a KV group, not the sum
  int draft;                // index among the rows with draft tokens; -1 for others

  // Draft tokens take the decode path, so their logits are bit-identical to those of single steps;
  // prompt tokens use larger blocks.
  bool decodes() const { return tokens == 1 || draft >= 0; }
};

// Phases of a layer, each with a counter from which threads take work; kHead is the only phase
// after the last layer.
enum Phase : int { kQkv, kAppend, kAttend, kMerge, kOut, kGateUp, kDown, kPhases, kHead = 0 };

// A buffer that grows to the largest step.
class Buffer {
 public:
  float* get(size_t count) {
    if (count > size_) {
      const size_t bytes = (count * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
      data_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
      size_ = data_ == nullptr ? 0 : count;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_.get();
  }
  float* data() const { return data_.get(); }

 private:
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<float[], void (*)(float*)> data_{nullptr, [](float* p) { std::free(p); }};
  size_t size_ = 0;
};

struct Step {
  int tokens = 0;
  int drafted_rows = 0;
  const int64_t* ids = nullptr;
  const int64_t* adapters = nullptr;  // (M,), -1 for none
  const int64_t* held = nullptr;      // (budgets, B): entries in the slot before the step
  std::vector<float> mass_weights;    // (M,)
  std::vector<Row> rows;
  std::vector<int64_t> positions;  // (M,)
  float *x = nullptr, *qkv = nullptr, *attended = nullptr, *mlp = nullptr;

  int held_of(int budget_index, int row) const {
    return static_cast<int>(held[static_cast<size_t>(budget_index) * rows.size() + row]);
  }
  void reset_counters(size_t layers) {
    const size_t count = layers * kPhases + 1;
    if (counters_.size() < count) counters_ = std::vector<std::atomic<int>>(count);
    for (auto& counter : counters_) counter.store(0, std::memory_order_relaxed);
  }
  // Takes the next `count` items of a phase for this thread, and returns the first.
  int take(size_t layer, Phase phase, int count) {
    return counters_[layer * kPhases + phase].fetch_add(count, std::memory_order_relaxed);
  }

 private:
  std::vector<std::atomic<int>> counters_;
};

}  // namespace llamahome
