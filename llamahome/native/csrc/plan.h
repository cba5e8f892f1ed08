// The plan of a step's attention: items for threads, and places for their results.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "plane.h"
#include "step.h"

namespace llamahome {

inline bool adds_mass(const Step& step, const Row& row) {
  const auto first = step.mass_weights.begin() + row.first;
  return std::any_of(first, first + row.tokens, [](float weight) { return weight != 0; });
}

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

  void make(const Step& step, const std::vector<LayerPlanes>& layers) {
    plans_.clear();
    plan_of_.clear();
    parts_size_ = probs_size_ = 0;
    widest_ = 1;
    for (const LayerPlanes& layer : layers) {
      std::vector<int> key;
      for (const auto& [plane, head] : layer.head) key.push_back(layer.planes[plane].budget_index);
      size_t at = 0;
      while (at < plans_.size() && plans_[at].first != key) ++at;
      if (at == plans_.size()) plans_.emplace_back(key, make_layer(step, layer));
      plan_of_.push_back(at);
    }
  }

  // Places the mass of draft tokens; returns how many floats it takes.
  size_t make_drafts(const Step& step, const std::vector<LayerPlanes>& layers) {
    drafts_.clear();
    if (step.drafted_rows == 0) return 0;
    size_t size = 0;
    for (const LayerPlanes& layer : layers) {
      for (size_t b = 0; b < step.rows.size(); ++b) {
        const Row& row = step.rows[b];
        if (row.draft < 0) continue;
        for (const auto& [index, head] : layer.head) {
          const Plane& plane = layer.planes[index];
          const int before = step.held_of(plane.budget_index, static_cast<int>(b));
          const int width = round_up(before + row.tokens, kLanes);
          drafts_.push_back({plane.mass_of(row.slot, head), before, width, size});
          if (adds_mass(step, row)) size += static_cast<size_t>(row.tokens) * width;
        }
      }
    }
    return size;
  }

  const LayerPlan& of(size_t layer) const { return plans_[plan_of_[layer]].second; }
  const Draft& draft(const Step& step, size_t layer, int draft, int head) const {
    return drafts_[(layer * step.drafted_rows + draft) * shape_.kv_heads + head];
  }

  // Floats that an item leaves for the merge: max, sum and output of each query head in decode,
  // mass in prefill.
  size_t part_floats(const Row& row, int tiles) const {
    if (!row.decodes()) return static_cast<size_t>(tiles) * kLanes;
    return static_cast<size_t>(std::min(row.tokens, block())) * shape_.group() *
           (shape_.head_dim + 2 * kLanes);
  }

  // Number of tokens whose queries attend together.
  int block() const { return std::max(1, kMaxQueries / shape_.group()); }

  size_t parts_size() const { return parts_size_; }
  size_t probs_size() const { return probs_size_; }
  int widest() const { return widest_; }  // tiles of the longest slot

 private:
  LayerPlan make_layer(const Step& step, const LayerPlanes& layer) {
    LayerPlan plan;
    size_t parts = 0, probs = 0;
    const int rows = static_cast<int>(step.rows.size());
    for (int b = 0; b < rows; ++b) {
      const Row& row = step.rows[b];
      for (int g = 0; g < shape_.kv_heads; ++g) {
        const int keys = step.held_of(layer.plane_of(g).budget_index, b) + row.tokens;
        const int tiles = round_up(keys, kLanes) / kLanes;
        widest_ = std::max(widest_, tiles);
        const size_t first = plan.items.size();
        plan.key_parts.push_back(row.decodes() ? split_keys(plan, step, b, g, tiles)
                                               : split_queries(plan, step, b, g, tiles));
        place(plan, row, tiles, first, &parts, &probs);
      }
    }
    parts_size_ = std::max(parts_size_, parts);
    probs_size_ = std::max(probs_size_, probs);
    return plan;
  }

  // Gives the items of a row and head, from `first` on, their places in the buffers.
  void place(LayerPlan& plan, const Row& row, int tiles, size_t first, size_t* parts,
             size_t* probs) const {
    const size_t count = plan.items.size() - first;
    plan.first.push_back(first);
    plan.parts.push_back(static_cast<int>(count));
    plan.part_at.push_back(*parts);
    *parts += count * part_floats(row, tiles);
    for (size_t i = first; i < plan.items.size(); ++i) {
      const Item& item = plan.items[i];
      plan.probs_at.push_back(*probs);
      if (plan.key_parts.back() > 1) {
        *probs += static_cast<size_t>(item.tokens) * shape_.group() * kLanes *
                  (item.last_tile - item.first_tile);
      }
    }
  }

  // Splits the keys of a decoding row. The parts depend on the number of keys alone, so that a
  // token's result does not depend on the other rows. Draft tokens are split into blocks, into
  // at least two where threads would idle.
  int split_keys(LayerPlan& plan, const Step& step, int row, int head, int tiles) const {
    const int parts = (tiles + kPartTiles - 1) / kPartTiles, tokens = step.rows[row].tokens;
    const int rows = static_cast<int>(step.rows.size());
    const bool idle = rows * shape_.kv_heads * parts < 4 * threads_;
    const int blocks = std::max((tokens + block() - 1) / block(), idle && tokens >= 4 ? 2 : 1);
    int index = 0;
    for (int part = 0; part < parts; ++part) {
      const int first_tile = part * kPartTiles,
                last_tile = std::min(tiles, first_tile + kPartTiles);
      for (int b = 0; b < blocks; ++b, ++index) {
        const int first = tokens * b / blocks, last = tokens * (b + 1) / blocks;
        plan.items.push_back({row, head, first, last - first, first_tile, last_tile, index});
      }
    }
    return parts;
  }

  // Splits the queries of a prefilling row into blocks.
  int split_queries(LayerPlan& plan, const Step& step, int row, int head, int tiles) const {
    int part = 0;
    for (int first = 0; first < step.rows[row].tokens; first += block(), ++part) {
      const int count = std::min(block(), step.rows[row].tokens - first);
      plan.items.push_back({row, head, first, count, 0, tiles, part});
    }
    return 1;
  }

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
