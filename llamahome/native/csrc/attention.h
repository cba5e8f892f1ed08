// Attention of a step over the planes: append, decode or prefill, merge.
// Axes: M tokens of a step, B rows, H query heads, G KV heads, D head_dim, S keys.
#pragma once

#include <vector>

#include "plan.h"

namespace llamahome {

class Attention {
 public:
  Attention(const Kernels* kernels, Team& team, const Shape& shape);

  // cos and sin (positions, D / 2).
  void set_rotary(const float* cos, const float* sin) { cos_ = cos, sin_ = sin; }

  // Plans a step, and allocates all that threads will need.
  void begin(const Step& step, const std::vector<LayerPlanes>& layers);
  // From step.qkv (M, stride) to step.attended (M, H, D). All threads of the team call it.
  void run(Step& step, const std::vector<LayerPlanes>& layers, size_t layer, int stride, int id);
  // Adds the mass of the first `count` draft tokens of a row, as single steps would have.
  void accept(const Step& step, size_t layers, const Row& row, int64_t count) const;

 private:
  // The step and layer that a thread works on.
  struct Task {
    const Step& step;
    const LayerPlanes& planes;
    const LayerPlan& plan;
    size_t layer;
    int stride, id;

    const Row& row(const Item& item) const { return step.rows[item.row]; }
    int held(int row, int head) const {
      return step.held_of(planes.plane_of(head).budget_index, row);
    }
    KvView view(int row, int head) const {
      return planes.plane_of(head).view(step.rows[row].slot, planes.index_of(head));
    }
    float* mass(int row, int head) const {
      return planes.plane_of(head).mass_of(step.rows[row].slot, planes.index_of(head));
    }
  };
  // Max and sum of each query row's exponentials, and what scales them to probabilities.
  struct Softmax {
    float max[kMaxQueries], sum[kMaxQueries], factor[kMaxQueries];
  };
  // Keys of an item and their probabilities (rows, width). `probs` is shifted by `first`, so that
  // probs[row * width + key] belongs to this key of the slot.
  struct Span {
    int first, last, width;
    float* probs;
  };

  // Append and merge take one row and KV head, decode and prefill one item of the plan.
  void append(const Task& task, int row, int head) const;
  void decode(const Task& task, int at);
  void prefill(const Task& task, int at);
  void merge(const Task& task, int pair);

  // Parts of decode and prefill.
  Span decode_span(const Task& task, int at);
  void fetch_item(const Task& task, const Item& item, const Span& span) const;
  void fetch_keys(const Task& task, int at) const;
  Softmax decode_softmax(const Item& item, const Span& span, int before) const;
  void keep_part(const Task& task, const Item& item, const Span& span, const Softmax& softmax);
  void prefill_mass(const Task& task, const Item& item, const Span& span, float* factor) const;
  void merge_keys(const Task& task, int pair, int block) const;
  void merge_part(const Task& task, const Item& item, const float* part, const Span& span,
                  Softmax& softmax) const;
  Softmax merge_softmax(const float* parts, size_t step, int count, int rows) const;
  void merge_mass(const Task& task, int pair) const;

  // Adds the mass of a decoded token. That of a draft token is stored without its weight until it
  // is accepted, so that rounding is the same.
  void add_mass(const Task& task, const Item& item, int token, const Span& span,
                const Softmax& softmax) const;
  // Writes probabilities x values; `disposable`: the probabilities are not read again.
  void weigh_values(const Task& task, const Item& item, const Span& span, float* out,
                    bool disposable);
  void scale(float* out, const float* factor, int rows) const;
  // An item's queries (tokens, group, D), contiguous; those of one token are so already.
  const float* queries(const Task& task, const Item& item, float* gathered) const;
  void scatter(const Step& step, const Item& item, const float* out) const;
  float* attended(const Step& step, const Item& item, int token) const;
  float* part(const LayerPlan& plan, const Item& item, size_t floats) const;
  int pair(const Item& item) const { return item.row * shape_.kv_heads + item.head; }

  const Kernels* kernels_;
  Team& team_;
  const Shape shape_;
  Plan plan_;
  const float *cos_ = nullptr, *sin_ = nullptr;
  Buffer parts_, probs_, draft_mass_;
  std::vector<Buffer> scratch_, queries_;
};

}  // namespace llamahome
