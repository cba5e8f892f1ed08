// Attention of a step over the planes: append, decode or prefill, merge.
// Axes: M tokens of a step, B rows, H query heads, G KV heads, D head_dim, S keys.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "plan.h"

namespace llamahome {

// A layer of a step: its planes and norms, its index, and the stride of step.qkv.
struct AttentionCall {
  const LayerPlanes& planes;
  const HeadNorms& norms;
  size_t layer;
  int stride;
};

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
  void begin(const Step& step, const std::vector<LayerPlanes>& layers) {
    plan_.make(step, layers);
    parts_.get(plan_.parts_size());
    probs_.get(plan_.probs_size());
    draft_mass_.get(plan_.make_drafts(step, layers));
    for (int id = 0; id < team_.size(); ++id) {
      scratch_[id].get(static_cast<size_t>(kMaxQueries) * plan_.widest() * kLanes);
      queries_[id].get(static_cast<size_t>(kMaxQueries) * shape_.head_dim * 2);
    }
  }

  // From step.qkv (M, stride) to step.attended (M, H, D). All threads of the team call it.
  void run(Step& step, const AttentionCall& call, int id) {
    const size_t layer = call.layer;
    const Task task{step, call.planes, call.norms, plan_.of(layer), layer, call.stride, id};
    const int pairs = static_cast<int>(step.rows.size()) * shape_.kv_heads;
    for (int at = step.take(layer, kAppend, 1); at < pairs; at = step.take(layer, kAppend, 1)) {
      append(task, at / shape_.kv_heads, at % shape_.kv_heads);
    }
    if (few(step.tokens)) fetch_keys(task, id);
    team_.barrier();
    const int items = static_cast<int>(task.plan.items.size());
    for (int at = step.take(layer, kAttend, 1); at < items; at = step.take(layer, kAttend, 1)) {
      if (task.row(task.plan.items[at]).decodes()) {
        decode(task, at);
      } else {
        prefill(task, at);
      }
    }
    team_.barrier();
    for (int at = step.take(layer, kMerge, 1); at < pairs; at = step.take(layer, kMerge, 1)) {
      merge(task, at);
    }
    team_.barrier();
  }

  // Adds the mass of the first `count` draft tokens of a row, as single steps would have.
  void accept(const Step& step, size_t layers, const Row& row, int64_t count) const {
    constexpr float kOnce = 1.0f;
    for (size_t layer = 0; layer < layers; ++layer) {
      for (int g = 0; g < shape_.kv_heads; ++g) {
        const Draft& draft = plan_.draft(step, layer, row.draft, g);
        for (int t = 0; t < count; ++t) {
          const float weight = step.mass_weights[row.first + t];
          if (weight == 0) continue;
          const float* own = draft_mass_.data() + draft.at + static_cast<size_t>(t) * draft.width;
          kernels_->add_mass(own, &kOnce, 1, draft.width, 0, draft.before + t + 1, weight, false,
                             draft.mass);
        }
      }
    }
  }

 private:
  // The step and layer that a thread works on.
  struct Task {
    const Step& step;
    const LayerPlanes& planes;
    const HeadNorms& norms;
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

  // Normalises and rotates a row's queries and keys of one KV head, and writes its keys and values.
  void append(const Task& task, int b, int g) const {
    const Step& step = task.step;
    const Row& row = step.rows[b];
    const Plane& plane = task.planes.plane_of(g);
    const int dim = shape_.head_dim, half = dim / 2, held = task.held(b, g);
    const KvView kv = task.view(b, g);
    float* mass = task.mass(b, g);
    int64_t* positions = plane.positions_of(row.slot, task.planes.index_of(g));
    for (int t = 0; t < row.tokens; ++t) {
      const int m = row.first + t, place = held + t;
      float* token = step.qkv + static_cast<size_t>(m) * task.stride;
      const float* cos = cos_ + step.positions[m] * half;
      const float* sin = sin_ + step.positions[m] * half;
      const int adapter = static_cast<int>(step.adapters[m]);
      for (int r = 0; r < shape_.group(); ++r) {
        float* query = token + (g * shape_.group() + r) * dim;
        normalise(task.norms.query, adapter, query);
        kernels_->rotate(query, cos, sin, dim, shape_.scaling);
      }
      float* key = token + shape_.attention() + g * dim;
      normalise(task.norms.key, adapter, key);
      const float* value = token + shape_.attention() + (shape_.kv_heads + g) * dim;
      plane.write_feature(*kernels_, row.slot, task.planes.index_of(g), place, key, value);
      kernels_->rotate(key, cos, sin, dim, 1.0f);
      kernels_->write(plane.type, kv, place, key, value, dim);
      mass[place] = 0.0f;
      positions[place] = step.positions[m];
    }
  }

  // Normalises one head in place, where the model does.
  void normalise(const Norm& norm, int adapter, float* head) const {
    if (norm.weights.empty()) return;
    kernels_->rms_norm(head, norm.of(adapter), shape_.eps, shape_.head_dim, head);
  }

  // In attention_decode.cpp: an item of the plan, its parts, and the merge of several.
  void decode(const Task& task, int at);
  Span decode_span(const Task& task, int at);
  void fetch_item(const Task& task, const Item& item, const Span& span) const;
  void fetch_keys(const Task& task, int at) const;
  Softmax decode_softmax(const Item& item, const Span& span, int before) const;
  void keep_part(const Task& task, const Item& item, const Span& span, const Softmax& softmax);
  void merge_keys(const Task& task, int pair, int block) const;
  void merge_part(const Task& task, const Item& item, const float* part, const Span& span,
                  Softmax& softmax) const;
  Softmax merge_softmax(const float* parts, size_t step, int count, int rows) const;

  // A block of a prompt's queries against all keys before them.
  void prefill(const Task& task, int at) {
    const Item& item = task.plan.items[at];
    const int dim = shape_.head_dim, rows = item.tokens * shape_.group();
    const int keys = task.held(item.row, item.head) + item.first_token + item.tokens;
    const int tiles = round_up(keys, kLanes) / kLanes, width = tiles * kLanes;
    float* gathered = queries_[task.id].data();
    float* out = gathered + static_cast<size_t>(kMaxQueries) * dim;
    const Span span{0, keys, width, scratch_[task.id].get(static_cast<size_t>(rows) * width)};
    kernels_->logits(task.planes.plane_of(item.head).type, task.view(item.row, item.head),
                     queries(task, item, gathered), rows, dim, 0, tiles, span.probs, width);
    float factor[kMaxQueries];
    prefill_mass(task, item, span, factor);
    weigh_values(task, item, span, out, true);
    scale(out, factor, rows);
    scatter(task.step, item, out);
  }

  // Turns logits into exponentials and leaves their mass for the merge; `factor` is 1 / sum by row.
  void prefill_mass(const Task& task, const Item& item, const Span& span, float* factor) const {
    const Row& row = task.row(item);
    const int group = shape_.group(), before = task.held(item.row, item.head);
    float* mass = part(task.plan, item, plan_.part_floats(row, item.last_tile));
    std::fill(mass, mass + item.last_tile * kLanes, 0.0f);
    for (int t = 0; t < item.tokens; ++t) {
      const int seen = before + item.first_token + t + 1;
      float* lines = span.probs + static_cast<size_t>(t) * group * span.width;
      float* factors = factor + t * group;
      float max;
      for (int r = 0; r < group; ++r) {
        float* line = lines + static_cast<size_t>(r) * span.width;
        factors[r] = 1.0f / kernels_->exponentials(line, seen, span.width, &max);
      }
      const float weight = task.step.mass_weights[row.first + item.first_token + t];
      if (weight == 0) continue;
      kernels_->add_mass(lines, factors, group, span.width, 0, seen, weight, row.max_mass, mass);
    }
  }

  // Combines the items of a row and KV head.
  void merge(const Task& task, int pair) {
    if (!task.step.rows[pair / shape_.kv_heads].decodes()) return merge_mass(task, pair);
    const int count = task.plan.key_parts[pair];
    if (count == 1) return;
    for (int block = 0; block < task.plan.parts[pair] / count; ++block) {
      merge_keys(task, pair, block);
    }
  }

  void merge_mass(const Task& task, int pair) const {
    const int b = pair / shape_.kv_heads, g = pair % shape_.kv_heads;
    const Row& row = task.step.rows[b];
    const int keys = task.held(b, g) + row.tokens;
    float* mass = task.mass(b, g);
    const float* parts = parts_.data() + task.plan.part_at[pair];
    const size_t size = plan_.part_floats(row, round_up(keys, kLanes) / kLanes);
    for (int part = 0; part < task.plan.parts[pair]; ++part) {
      for (int s = 0; s < keys; ++s) mass[s] += parts[part * size + s];
    }
  }

  // Adds the mass of a decoded token. That of a draft token is stored without its weight until it
  // is accepted, so that rounding is the same.
  void add_mass(const Task& task, const Item& item, int token, const Span& span,
                const Softmax& softmax) const {
    const Row& row = task.row(item);
    const int t = item.first_token + token, group = shape_.group();
    const int last = std::min(span.last, task.held(item.row, item.head) + t + 1);
    float weight = task.step.mass_weights[row.first + t];
    if (weight == 0 || last <= span.first) return;
    float* mass = task.mass(item.row, item.head);
    if (row.draft >= 0) {
      const Draft& draft = plan_.draft(task.step, task.layer, row.draft, item.head);
      mass = draft_mass_.data() + draft.at + static_cast<size_t>(t) * draft.width;
      std::fill(mass + span.first, mass + last, 0.0f);
      weight = 1.0f;
    }
    kernels_->add_mass(span.probs + static_cast<size_t>(token) * group * span.width,
                       softmax.factor + token * group, group, span.width, span.first, last, weight,
                       row.max_mass, mass);
  }

  // Writes probabilities x values. int8 values scale their probabilities in place; where these are
  // not `disposable`, because a merge reads them again, a copy is scaled.
  void weigh_values(const Task& task, const Item& item, const Span& span, float* out,
                    bool disposable) {
    const KvType type = task.planes.plane_of(item.head).type;
    const int rows = item.tokens * shape_.group();
    float* probs = span.probs;
    if (type == KvType::kInt8 && !disposable) {
      const size_t count = static_cast<size_t>(rows) * span.width;
      float* copy = scratch_[task.id].get(count);
      std::memcpy(copy, probs + span.first, sizeof(float) * count);
      probs = copy - span.first;
    }
    kernels_->weighted_values(type, task.view(item.row, item.head), probs, rows, shape_.head_dim,
                              span.first, span.last, span.width, out);
  }

  void scale(float* out, const float* factor, int rows) const {
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < shape_.head_dim; ++d) out[r * shape_.head_dim + d] *= factor[r];
    }
  }

  // An item's queries (tokens, group, D), contiguous; those of one token are so already.
  const float* queries(const Task& task, const Item& item, float* gathered) const {
    const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
    const size_t first = task.row(item).first + item.first_token;
    const float* token = task.step.qkv + item.head * size + first * task.stride;
    if (item.tokens == 1) return token;
    for (int t = 0; t < item.tokens; ++t, token += task.stride) {
      std::memcpy(gathered + t * size, token, sizeof(float) * size);
    }
    return gathered;
  }

  void scatter(const Step& step, const Item& item, const float* out) const {
    const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
    for (int t = 0; t < item.tokens; ++t) {
      std::memcpy(attended(step, item, t), out + t * size, sizeof(float) * size);
    }
  }

  float* attended(const Step& step, const Item& item, int token) const {
    const size_t at = step.rows[item.row].first + item.first_token + token;
    return step.attended + at * shape_.attention() +
           static_cast<size_t>(item.head) * shape_.group() * shape_.head_dim;
  }

  float* part(const LayerPlan& plan, const Item& item, size_t floats) const {
    return parts_.data() + plan.part_at[pair(item)] + static_cast<size_t>(item.part) * floats;
  }

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
