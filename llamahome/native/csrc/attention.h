// Attention of a step over the planes: append, decode or prefill, merge.
// Axes: M tokens of a step, B rows, H query heads, G KV heads, D head_dim, S keys.
#pragma once

#include <vector>

#include "kernels.h"
#include "plan.h"
#include "plane.h"
#include "step.h"
#include "team.h"

namespace llamahome {

class Attention {
 public:
  Attention(const Kernels* kernels, Team& team, const Shape& shape)
      : kernels_(kernels),
        team_(team),
        shape_(shape),
        plan_(shape, team.size()),
        scratch_(team.size()),
        queries_(team.size()) {}

  // cos and sin (positions, D / 2).
  void set_rotary(const float* cos, const float* sin) { cos_ = cos, sin_ = sin; }

  // Plans a step, and allocates all that threads will need.
  void begin(const Step& step, const std::vector<LayerPlanes>& layers);
  // From step.qkv (M, stride) to step.attended (M, H, D). All threads of the team call it.
  void run(Step& step, const std::vector<LayerPlanes>& layers, size_t layer, int stride, int id);
  // Adds the mass of the first `count` draft tokens of a row, as if each had been a step of its
  // own.
  void accept(const Step& step, size_t layers, const Row& row, int64_t count) const;

 private:
  // One item on its way through a thread.
  struct Task {
    const Step& step;
    const LayerPlanes& planes;
    const LayerPlan& plan;
    size_t layer;
    int stride, id;
  };
  // Statistics of a softmax, of each query row.
  struct Softmax {
    float max[kMaxQueries], sum[kMaxQueries], factor[kMaxQueries];
  };
  // Keys that an item reads, and its probabilities: (rows, width), indexed by key from `first` on.
  struct Span {
    int first, last, width;
    float* probs;  // shifted, so that probs[row * width + key] is key's
  };

  void append(const Task& task, int row, int head) const;
  void decode(const Task& task, int at);
  void prefill(const Task& task, int at);
  void merge(const Task& task, int pair);
  void merge_keys(const Task& task, int pair, int block, int before);

  Softmax decode_softmax(const Item& item, const Span& span, int before) const;
  void merge_softmax(const float* parts, size_t step, int count, int rows, Softmax& softmax) const;
  // Adds the mass of a decoded token, or puts it aside, unweighted, where the token is a draft, so
  // that accepting rounds as adding does.
  void add_mass(const Task& task, const Item& item, int token, const Span& span,
                const Softmax& softmax, int last) const;
  void weigh_values(const Plane& plane, const KvView& kv, const Span& span, int rows, float* out,
                    bool disposable, int id);
  void scale(float* out, const float* factor, int rows) const;
  // An item's queries (tokens, group, D) side by side; one token's stay where they are.
  const float* queries(const Task& task, const Item& item, float* gathered) const;
  void scatter(const Step& step, const Item& item, const float* out) const;
  float* attended(const Step& step, const Item& item, int token) const;
  float* part(const LayerPlan& plan, const Item& item, size_t floats) const;
  int pair(const Item& item) const { return item.row * shape_.kv_heads + item.head; }
  void fetch_keys(const Task& task, int at) const;

  static constexpr size_t kFetched = 4096;  // bytes of a stream before it fetches for itself

  const Kernels* kernels_;
  Team& team_;
  const Shape shape_;
  Plan plan_;
  const float *cos_ = nullptr, *sin_ = nullptr;
  float *parts_ = nullptr, *probs_ = nullptr, *draft_mass_ = nullptr;
  Buffer parts_buffer_, probs_buffer_, draft_buffer_;
  std::vector<Buffer> scratch_, queries_;
};

}  // namespace llamahome
