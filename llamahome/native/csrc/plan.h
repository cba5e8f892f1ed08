// The plan of a step's attention: its parts, and where they leave their results.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "plane.h"
#include "step.h"

namespace llamahome {

// Queries of a row, or keys of one, that one thread attends for.
struct Item {
  int row, head;
  int first_token, tokens;
  int first_tile, last_tile;
  int part;  // among the items of its row and head, those of the same keys together
};

// Mass that the draft tokens of a row add to a KV head, each by itself: (tokens, width).
struct Draft {
  float* mass;  // where it goes after verification
  int before;   // entries ahead of the first draft token
  int width;
  size_t at;
};

// The items of a step, the same in all layers whose heads have the same budgets.
struct LayerPlan {
  std::vector<Item> items;
  std::vector<int> parts;        // (row, head): its items
  std::vector<int> key_parts;    // (row, head): those of them that share a query's keys
  std::vector<size_t> first;     // (row, head): its first item
  std::vector<size_t> part_at;   // (row, head): its first item's place in the scratch of parts
  std::vector<size_t> probs_at;  // (item): probabilities that a merge must rescale
};

class Plan {
 public:
  Plan(const Shape& shape, int threads) : shape_(shape), threads_(threads) {}

  void make(const Step& step, const std::vector<LayerPlanes>& layers);
  // Places for the mass of draft tokens; returns how many floats they take.
  size_t make_drafts(const Step& step, const std::vector<LayerPlanes>& layers);

  const LayerPlan& of(size_t layer) const { return plans_[plan_of_[layer]].second; }
  const Draft& draft(const Step& step, size_t layer, int draft, int head) const {
    return drafts_[(layer * step.drafted_rows + draft) * shape_.kv_heads + head];
  }

  // What an item leaves for the merge: decode: max, sum and output of each query head; prefill:
  // mass.
  size_t part_floats(const Row& row, int tiles) const;
  // Tokens whose queries attend together.
  int block() const { return std::max(1, kMaxQueries / shape_.group()); }

  size_t parts_size() const { return parts_size_; }
  size_t probs_size() const { return probs_size_; }
  int widest() const { return widest_; }  // tiles of the slot that is read furthest

 private:
  LayerPlan make_layer(const Step& step, const LayerPlanes& layer);
  void place(LayerPlan& plan, const Row& row, int tiles, size_t first, size_t* parts,
             size_t* probs) const;
  int split_keys(LayerPlan& plan, const Step& step, int row, int head, int tiles) const;
  int split_queries(LayerPlan& plan, const Step& step, int row, int head, int tiles) const;

  static constexpr int kPartTiles = 512 / kLanes;  // keys one thread reads for a decoded token

  const Shape shape_;
  const int threads_;
  std::vector<std::pair<std::vector<int>, LayerPlan>> plans_;  // by the budgets of a layer's heads
  std::vector<size_t> plan_of_;
  std::vector<Draft> drafts_;  // (layer, row of draft tokens, KV head)
  size_t parts_size_ = 0, probs_size_ = 0;
  int widest_ = 1;
};

// Whether any of a row's tokens counts in the mass.
bool adds_mass(const Step& step, const Row& row);

}  // namespace llamahome
