// KV memory of the heads of one layer that share a budget.
// Axes: G KV heads of a plane, C capacity, D head_dim.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace llamahome {

template <class T>
void move_entry(const KvView& kv, int dim, int from, int to) {
  T* keys = static_cast<T*>(kv.keys);
  T* values = static_cast<T*>(kv.values);
  const T* source = keys + static_cast<size_t>(from / kLanes) * dim * kLanes + from % kLanes;
  T* target = keys + static_cast<size_t>(to / kLanes) * dim * kLanes + to % kLanes;
  for (int d = 0; d < dim; ++d) target[d * kLanes] = source[d * kLanes];
  std::memcpy(values + static_cast<size_t>(to) * dim, values + static_cast<size_t>(from) * dim,
              sizeof(T) * dim);
}

// A policy's network for each head of a plane: from an entry's unrotated key and its value to its
// feature, linear(x) + out . silu(hidden(x) + hidden_bias) + bias.
struct FeatureNetwork {
  static constexpr int kMaxWidth = 256;

  const float *keys = nullptr, *values = nullptr;  // (G, W + 1, D): hidden, the last row linear
  const float *hidden_bias, *out;                  // (G, W)
  const float* bias;                               // (G,)
  int width;

  float feature(const Kernels& kernels, int head, const float* key, const float* value,
                int dim) const {
    float from_key[kMaxWidth + 1], from_value[kMaxWidth + 1];
    const size_t rows = static_cast<size_t>(head) * (width + 1) * dim;
    kernels.dots(keys + rows, key, width + 1, dim, from_key);
    kernels.dots(values + rows, value, width + 1, dim, from_value);
    float total = bias[head] + from_key[width] + from_value[width];
    for (int j = 0; j < width; ++j) {
      const float x = hidden_bias[head * width + j] + from_key[j] + from_value[j];
      total += out[head * width + j] * x / (1.0f + std::exp(-x));
    }
    return total;
  }
};

// keys (slots, G, C / 16, D, 16), values (slots, G, C, D), the other columns (slots, G, C).
struct Plane {
  KvType type;
  int heads, capacity, dim;  // capacity is a multiple of 16
  int itemsize;              // bytes of one number of a key or value
  int budget_index;          // row of Step::held
  char *keys, *values;
  float *key_scales = nullptr, *value_scales = nullptr;  // int8 only
  float* mass;
  int64_t* positions;
  float* features = nullptr;  // one per entry, by a policy that writes them; else null
  FeatureNetwork network;     // writes them, where the policy has one; without keys it has none

  KvView view(int slot, int head) const {
    const int64_t at = first(slot, head), scale = type == KvType::kInt8 ? at : 0;
    return {keys + at * dim * itemsize, values + at * dim * itemsize, key_scales + scale,
            value_scales + scale};
  }
  float* mass_of(int slot, int head) const { return mass + first(slot, head); }
  int64_t* positions_of(int slot, int head) const { return positions + first(slot, head); }

  // Writes the feature of a new entry, from its key before it is rotated.
  void write_feature(const Kernels& kernels, int slot, int head, int place, const float* key,
                     const float* value) const {
    if (network.keys == nullptr) return;
    features[first(slot, head) + place] = network.feature(kernels, head, key, value, dim);
  }

  // Which of the first `count` entries of each slot to keep: `budget` of them, sinks and recent
  // ones first, then by score, NaN last; of equal scores the older.
  struct Compaction {
    const int64_t *slots, *lengths, *sinks;  // (rows,)
    const double* scores;                    // (rows, G, >= count)
    int64_t row_stride, head_stride;         // of scores
    int rows, count, budget, recent;
  };

  // Moves the entries that stay to the front, in their order.
  void compact(const Compaction& what, Team& team) const {
    const int items = what.rows * heads;
    std::atomic<int> next{0};
    team.run([&](int) {
      Ranking scratch{std::vector<int>(what.count), std::vector<double>(what.count),
                      std::vector<char>(what.count)};
      for (int item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
        compact_head(what, item / heads, item % heads, scratch);
      }
    });
  }

 private:
  struct Ranking {
    std::vector<int> order;
    std::vector<double> rank;
    std::vector<char> stays;
  };

  int64_t first(int64_t slot, int head) const { return (slot * heads + head) * capacity; }

  void compact_head(const Compaction& what, int row, int head, Ranking& scratch) const {
    constexpr double kMost = std::numeric_limits<double>::infinity();
    const int slot = static_cast<int>(what.slots[row]);
    const double* score = what.scores + row * what.row_stride + head * what.head_stride;
    const int64_t* position = positions_of(slot, head);
    auto& [order, rank, stays] = scratch;
    for (int i = 0; i < what.count; ++i) {
      const bool safe =
          position[i] < what.sinks[row] || position[i] >= what.lengths[row] - what.recent;
      rank[i] = safe ? kMost : std::isnan(score[i]) ? -kMost : score[i];
      order[i] = i;
    }
    std::nth_element(
        order.begin(), order.begin() + what.budget - 1, order.end(),
        [&rank = rank](int a, int b) { return rank[a] != rank[b] ? rank[a] > rank[b] : a < b; });
    std::fill(stays.begin(), stays.end(), 0);
    for (int i = 0; i < what.budget; ++i) stays[order[i]] = 1;
    for (int from = 0, to = 0; from < what.count; ++from) {
      if (stays[from]) move(slot, head, from, to++);
    }
  }

  void move(int slot, int head, int from, int to) const {
    if (from == to) return;
    const KvView kv = view(slot, head);
    const int64_t at = first(slot, head);
    if (type == KvType::kFloat) {
      move_entry<float>(kv, dim, from, to);
    } else if (type == KvType::kHalf) {
      move_entry<uint16_t>(kv, dim, from, to);
    } else {
      move_entry<int8_t>(kv, dim, from, to);
      key_scales[at + to] = key_scales[at + from];
      value_scales[at + to] = value_scales[at + from];
    }
    mass[at + to] = mass[at + from];
    positions[at + to] = positions[at + from];
    if (features != nullptr) features[at + to] = features[at + from];
  }
};

struct LayerPlanes {
  std::vector<Plane> planes;
  std::vector<std::pair<int, int>> head;  // KV head -> plane, index in it

  const Plane& plane_of(int kv_head) const { return planes[head[kv_head].first]; }
  int index_of(int kv_head) const { return head[kv_head].second; }
};

}  // namespace llamahome
