// KV memory of the heads of one layer that share a budget.
// Axes: G KV heads of a plane, C capacity, D head_dim.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace llamahome {

class Team;

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
  float* features =
      nullptr;  // one number per entry that a policy wrote; null without such a policy

  KvView view(int slot, int head) const {
    const int64_t at = first(slot, head);
    KvView kv;
    kv.keys = keys + at * dim * itemsize;
    kv.values = values + at * dim * itemsize;
    if (type == KvType::kInt8) {
      kv.key_scales = key_scales + at;
      kv.value_scales = value_scales + at;
    }
    return kv;
  }
  float* mass_of(int slot, int head) const { return mass + first(slot, head); }
  int64_t* positions_of(int slot, int head) const { return positions + first(slot, head); }

  // Which of the first `count` entries of each slot to keep: `budget` of them, sinks and recent
  // ones first, then by score, NaN last; of equal scores the older.
  struct Compaction {
    const int64_t *slots, *lengths, *sinks;  // (rows,)
    const double* scores;                    // (rows, G, >= count)
    int64_t row_stride, head_stride;         // of scores
    int rows, count, budget, recent;
  };
  // Moves the entries that stay to the front, in their order.
  void compact(const Compaction& what, Team& team) const;

 private:
  struct Ranking {
    std::vector<int> order;
    std::vector<double> rank;
    std::vector<char> stays;
  };

  int64_t first(int64_t slot, int head) const { return (slot * heads + head) * capacity; }
  void compact_head(const Compaction& what, int row, int head, Ranking& scratch) const;
  void move(int slot, int head, int from, int to) const;
};

struct LayerPlanes {
  std::vector<Plane> planes;
  std::vector<std::pair<int, int>> head;  // KV head -> plane, index in it

  const Plane& plane_of(int kv_head) const { return planes[head[kv_head].first]; }
  int index_of(int kv_head) const { return head[kv_head].second; }
};

}  // namespace llamahome
