// Decode: few queries of a row against all its keys, which threads may share in parts.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention.h"

namespace llamahome {
namespace {

constexpr size_t kFetched = 4096;  // bytes after which the hardware prefetches a stream by itself

// Hardware recognises a stream only once it is read; this fetches its beginning before.
void fetch(const void* from, size_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
}

}  // namespace

void Attention::decode(const Task& task, int at) {
  const Item& item = task.plan.items[at];
  const Plane& plane = task.planes.plane_of(item.head);
  const int dim = shape_.head_dim, rows = item.tokens * shape_.group();
  const Span span = decode_span(task, at);
  fetch_item(task, item, span);
  float* gathered = queries_[task.id].data();
  kernels_->logits(plane.type, task.view(item.row, item.head), queries(task, item, gathered), rows,
                   dim, item.first_tile, item.last_tile, span.probs, span.width);
  fetch_keys(task, at + team_.size());
  const Softmax softmax = decode_softmax(item, span, task.held(item.row, item.head));
  if (task.plan.key_parts[pair(item)] > 1) return keep_part(task, item, span, softmax);
  for (int t = 0; t < item.tokens; ++t) add_mass(task, item, t, span, softmax);
  float* out = item.tokens == 1 ? attended(task.step, item, 0)
                                : gathered + static_cast<size_t>(kMaxQueries) * dim;
  weigh_values(task, item, span, out, true);
  scale(out, softmax.factor, rows);
  if (item.tokens > 1) scatter(task.step, item, out);
}

Attention::Span Attention::decode_span(const Task& task, int at) {
  const Item& item = task.plan.items[at];
  const int before = task.held(item.row, item.head);
  const int begin = item.first_tile * kLanes, end = item.last_tile * kLanes;
  const int last = std::min(end, before + item.first_token + item.tokens);
  const size_t count = static_cast<size_t>(item.tokens) * shape_.group() * (end - begin);
  float* probs = task.plan.key_parts[pair(item)] == 1 ? scratch_[task.id].get(count)
                                                      : probs_.data() + task.plan.probs_at[at];
  return {begin, last, end - begin, probs - begin};
}

// Fetches the beginnings of what is read after the logits: values and mass.
void Attention::fetch_item(const Task& task, const Item& item, const Span& span) const {
  const size_t row =
      static_cast<size_t>(shape_.head_dim) * task.planes.plane_of(item.head).itemsize;
  const void* values = task.view(item.row, item.head).values;
  fetch(static_cast<const char*>(values) + span.first * row, kFetched);
  if (task.row(item).draft < 0) {
    fetch(task.mass(item.row, item.head) + span.first, sizeof(float) * (span.last - span.first));
  }
}

void Attention::fetch_keys(const Task& task, int at) const {
  if (at >= static_cast<int>(task.plan.items.size())) return;
  const Item& item = task.plan.items[at];
  const size_t tile =
      static_cast<size_t>(shape_.head_dim) * kLanes * task.planes.plane_of(item.head).itemsize;
  const void* keys = task.view(item.row, item.head).keys;
  fetch(static_cast<const char*>(keys) + item.first_tile * tile, 2 * kFetched);
}

Attention::Softmax Attention::decode_softmax(const Item& item, const Span& span, int before) const {
  const int group = shape_.group(), rows = item.tokens * group;
  Softmax softmax;
  for (int r = 0; r < rows; ++r) {
    float* line = span.probs + span.first + static_cast<size_t>(r) * span.width;
    const int seen = std::min(span.width, before + item.first_token + r / group + 1 - span.first);
    if (seen > 0) {
      softmax.sum[r] = kernels_->exponentials(line, seen, span.width, &softmax.max[r]);
    } else {  // a draft token whose keys end before this part
      std::fill(line, line + span.width, 0.0f);
      softmax.max[r] = -std::numeric_limits<float>::infinity();
      softmax.sum[r] = 0;
    }
    softmax.factor[r] = 1.0f / softmax.sum[r];
  }
  return softmax;
}

// Leaves the result of some of the keys for the merge: max, sum and output of each query row.
void Attention::keep_part(const Task& task, const Item& item, const Span& span,
                          const Softmax& softmax) {
  const int rows = item.tokens * shape_.group();
  float* to = part(task.plan, item, plan_.part_floats(task.row(item), item.last_tile));
  std::memcpy(to, softmax.max, sizeof(float) * rows);
  std::memcpy(to + rows, softmax.sum, sizeof(float) * rows);
  weigh_values(task, item, span, to + 2 * kLanes * rows, false);
}

// Merges the parts of a block of tokens.
void Attention::merge_keys(const Task& task, int pair, int block) const {
  const LayerPlan& plan = task.plan;
  const int count = plan.key_parts[pair];
  const size_t blocks = plan.parts[pair] / count;
  const size_t size = plan_.part_floats(task.step.rows[pair / shape_.kv_heads], 0);
  const float* parts = parts_.data() + plan.part_at[pair] + block * size;
  const size_t first_item = plan.first[pair] + block;
  const Item& whole = plan.items[first_item];
  Softmax softmax = merge_softmax(parts, blocks * size, count, whole.tokens * shape_.group());
  for (int t = 0; t < whole.tokens; ++t) {
    float* out = attended(task.step, whole, t);
    std::fill(out, out + shape_.group() * shape_.head_dim, 0.0f);
  }
  for (int p = 0; p < count; ++p) {
    const size_t at = first_item + p * blocks;
    const Item& item = plan.items[at];
    const int begin = item.first_tile * kLanes, end = item.last_tile * kLanes;
    const Span span{begin, end, end - begin, probs_.data() + plan.probs_at[at] - begin};
    merge_part(task, item, parts + p * blocks * size, span, softmax);
  }
}

// Adds a part's output and mass, rescaled from its own max and sum to those of all keys.
void Attention::merge_part(const Task& task, const Item& item, const float* part, const Span& span,
                           Softmax& softmax) const {
  const int group = shape_.group(), dim = shape_.head_dim, rows = item.tokens * group;
  for (int r = 0; r < rows; ++r) {
    softmax.factor[r] = std::exp(part[r] - softmax.max[r]) / softmax.sum[r];
    float* out = attended(task.step, item, r / group) + (r % group) * dim;
    const float* own = part + 2 * kLanes * rows + r * dim;
    for (int d = 0; d < dim; ++d) out[d] += softmax.factor[r] * own[d];
  }
  for (int t = 0; t < item.tokens; ++t) add_mass(task, item, t, span, softmax);
}

// Max and sum over all `count` parts, which are `step` floats apart: max (rows), sum (rows), ...
Attention::Softmax Attention::merge_softmax(const float* parts, size_t step, int count,
                                            int rows) const {
  Softmax softmax;
  for (int r = 0; r < rows; ++r) {
    float max = parts[r], sum = 0;
    for (int p = 1; p < count; ++p) max = std::max(max, parts[p * step + r]);
    for (int p = 0; p < count; ++p) {
      sum += parts[p * step + rows + r] * std::exp(parts[p * step + r] - max);
    }
    softmax.max[r] = max;
    softmax.sum[r] = sum;
  }
  return softmax;
}

}  // namespace llamahome
