// The plan of a step's attention: items for threads, and places for their results.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "plane.h"
#include "step.h"

namespace llamahome {

// Work of one thread: queries of a row and KV head, against all or some of the keys.
struct Item {
  int row, head;
  int first_token, tokens;
  int first_tile, last_tile;
  int part;  // index in its row and head; items of the same keys are neighbours
};

// Mass that the draft tokens of a row would add to a KV head, one line per token: (tokens, width).
struct Draft {
  float* mass;  // of the slot and head, to which accepted tokens add
  int before;   // entries before the first draft token
  int width;
  size_t at;  // start in the buffer of draft mass
};

// The items of a step, shared by all layers whose heads have the same budgets.
struct LayerPlan {
  std::vector<Item> items;
  std::vector<int> parts;        // (row, head): number of items
  std::vector<int> key_parts;    // (row, head): number of parts that its keys are split into
  std::vector<size_t> first;     // (row, head): first item
  std::vector<size_t> part_at;   // (row, head): start of its results in the buffer of parts
  std::vector<size_t> probs_at;  // (item): start of the probabilities that a merge rescales
};

class Plan {
 public:
  Plan(const Shape& shape, int threads) : shape_(shape), threads_(threads) {}

  void make(const Step& step, const std::vector<LayerPlanes>& layers);
  // Places the mass of draft tokens; returns how many floats it takes.
  size_t make_drafts(const Step& step, const std::vector<LayerPlanes>& layers);

  const LayerPlan& of(size_t layer) const { return plans_[plan_of_[layer]].second; }
  const Draft& draft(const Step& step, size_t layer, int draft, int head) const {
    return drafts_[(layer * step.drafted_rows + draft) * shape_.kv_heads + head];
  }

  // Floats that an item leaves for the merge: max, sum and output of each query head in decode,
  // mass in prefill.
  size_t part_floats(const Row& row, int tiles) const;
  // Number of tokens whose queries attend together.
  int block() const { return std::max(1, kMaxQueries / shape_.group()); }

  size_t parts_size() const { return parts_size_; }
  size_t probs_size() const { return probs_size_; }
  int widest() const { return widest_; }  // tiles of the longest slot

 private:
  LayerPlan make_layer(const Step& step, const LayerPlanes& layer);
  void place(LayerPlan& plan, const Row& row, int tiles, size_t first, size_t* parts,
             size_t* probs) const;
  int split_keys(LayerPlan& plan, const Step& step, int row, int head, int tiles) const;
  int split_queries(LayerPlan& plan, const Step& step, int row, int head, int tiles) const;

  static constexpr int kPartTiles = 512 / kLanes;  // tiles of one part of a decoding row's keys

  const Shape shape_;
  const int threads_;
  std::vector<std::pair<std::vector<int>, LayerPlan>> plans_;  // by the budgets of a layer's heads
  std::vector<size_t> plan_of_;
  std::vector<Draft> drafts_;  // (layer, row with draft tokens, KV head)
  size_t parts_size_ = 0, probs_size_ = 0;
  int widest_ = 1;
};

}  // namespace llamahome
