#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace llamahome {
namespace {

// Streams are fetched ahead once they run; this asks for their beginnings before they do.
void fetch(const void* from, size_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
}

}  // namespace

void Attention::begin(const Step& step, const std::vector<LayerPlanes>& layers) {
  plan_.make(step, layers);
  parts_ = parts_buffer_.get(plan_.parts_size());
  probs_ = probs_buffer_.get(plan_.probs_size());
  draft_mass_ = draft_buffer_.get(plan_.make_drafts(step, layers));
  for (int id = 0; id < team_.size(); ++id) {
    scratch_[id].get(static_cast<size_t>(kMaxQueries) * plan_.widest() * kLanes);
    queries_[id].get(static_cast<size_t>(kMaxQueries) * shape_.head_dim * 2);
  }
}

void Attention::run(Step& step, const std::vector<LayerPlanes>& layers, size_t layer, int stride,
                    int id) {
  const Task task{step, layers[layer], plan_.of(layer), layer, stride, id};
  const int pairs = static_cast<int>(step.rows.size()) * shape_.kv_heads;
  for (int at = step.take(layer, kAppend, 1); at < pairs; at = step.take(layer, kAppend, 1)) {
    append(task, at / shape_.kv_heads, at % shape_.kv_heads);
  }
  if (step.few) fetch_keys(task, id);
  team_.barrier();
  const int items = static_cast<int>(task.plan.items.size());
  for (int at = step.take(layer, kAttend, 1); at < items; at = step.take(layer, kAttend, 1)) {
    if (step.rows[task.plan.items[at].row].decodes()) {
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

// Rotates a row's queries and keys of one KV head, and writes its keys and values.
void Attention::append(const Task& task, int b, int g) const {
  const Step& step = task.step;
  const Row& row = step.rows[b];
  const Plane& plane = task.planes.plane_of(g);
  const int head = task.planes.index_of(g), dim = shape_.head_dim, half = dim / 2;
  const KvView kv = plane.view(row.slot, head);
  const int held = step.held_of(plane.budget_index, b);
  float* mass = plane.mass_of(row.slot, head);
  int64_t* positions = plane.positions_of(row.slot, head);
  for (int t = 0; t < row.tokens; ++t) {
    const int m = row.first + t, place = held + t;
    float* token = step.qkv + static_cast<size_t>(m) * task.stride;
    const float* cos = cos_ + step.positions[m] * half;
    const float* sin = sin_ + step.positions[m] * half;
    for (int r = 0; r < shape_.group(); ++r) {
      kernels_->rotate(token + (g * shape_.group() + r) * dim, cos, sin, dim, shape_.scaling);
    }
    float* key = token + shape_.attention() + g * dim;
    const float* value = token + shape_.attention() + (shape_.kv_heads + g) * dim;
    kernels_->rotate(key, cos, sin, dim, 1.0f);
    kernels_->write(plane.type, const_cast<void*>(kv.keys), const_cast<void*>(kv.values),
                    const_cast<float*>(kv.key_scales), const_cast<float*>(kv.value_scales), place,
                    key, value, dim);
    mass[place] = 0.0f;
    positions[place] = step.positions[m];
  }
}

void Attention::fetch_keys(const Task& task, int at) const {
  if (at >= static_cast<int>(task.plan.items.size())) return;
  const Item& item = task.plan.items[at];
  const Plane& plane = task.planes.plane_of(item.head);
  const KvView kv = plane.view(task.step.rows[item.row].slot, task.planes.index_of(item.head));
  const size_t tile = static_cast<size_t>(shape_.head_dim) * kLanes * plane.itemsize;
  fetch(static_cast<const char*>(kv.keys) + item.first_tile * tile, 2 * kFetched);
}

void Attention::decode(const Task& task, int at) {
  const Item& item = task.plan.items[at];
  const Row& row = task.step.rows[item.row];
  const Plane& plane = task.planes.plane_of(item.head);
  const int dim = shape_.head_dim, group = shape_.group(), rows = item.tokens * group;
  const int before = task.step.held_of(plane.budget_index, item.row);
  const bool alone = task.plan.key_parts[pair(item)] == 1;
  Span span;
  span.first = item.first_tile * kLanes;
  span.last = std::min(item.last_tile * kLanes, before + item.first_token + item.tokens);
  span.width = (item.last_tile - item.first_tile) * kLanes;
  float* probs = alone ? scratch_[task.id].get(static_cast<size_t>(rows) * span.width)
                       : probs_ + task.plan.probs_at[at];
  span.probs = probs - span.first;
  const KvView kv = plane.view(row.slot, task.planes.index_of(item.head));
  fetch(
      static_cast<const char*>(kv.values) + static_cast<size_t>(span.first) * dim * plane.itemsize,
      kFetched);
  if (row.draft < 0) {
    fetch(plane.mass_of(row.slot, task.planes.index_of(item.head)) + span.first,
          sizeof(float) * (span.last - span.first));
  }
  float* gathered = queries_[task.id].data();
  const float* query = queries(task, item, gathered);
  kernels_->logits(plane.type, kv, query, rows, dim, item.first_tile, item.last_tile, span.probs,
                   span.width);
  fetch_keys(task, at + team_.size());
  const Softmax softmax = decode_softmax(item, span, before);
  if (!alone) {
    float* to = part(task.plan, item, plan_.part_floats(row, item.last_tile));
    std::memcpy(to, softmax.max, sizeof(float) * rows);
    std::memcpy(to + rows, softmax.sum, sizeof(float) * rows);
    weigh_values(plane, kv, span, rows, to + 2 * kLanes * rows, false, task.id);
    return;
  }
  for (int t = 0; t < item.tokens; ++t) {
    add_mass(task, item, t, span, softmax, std::min(span.last, before + item.first_token + t + 1));
  }
  float* out = item.tokens == 1 ? attended(task.step, item, 0)
                                : gathered + static_cast<size_t>(kMaxQueries) * dim;
  weigh_values(plane, kv, span, rows, out, true, task.id);
  scale(out, softmax.factor, rows);
  if (item.tokens > 1) scatter(task.step, item, out);
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

float* Attention::part(const LayerPlan& plan, const Item& item, size_t floats) const {
  return parts_ + plan.part_at[pair(item)] + static_cast<size_t>(item.part) * floats;
}

float* Attention::attended(const Step& step, const Item& item, int token) const {
  const size_t at = step.rows[item.row].first + item.first_token + token;
  return step.attended + at * shape_.attention() +
         static_cast<size_t>(item.head) * shape_.group() * shape_.head_dim;
}

const float* Attention::queries(const Task& task, const Item& item, float* gathered) const {
  const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
  const size_t first = task.step.rows[item.row].first + item.first_token;
  const float* token = task.step.qkv + item.head * size + first * task.stride;
  if (item.tokens == 1) return token;
  for (int t = 0; t < item.tokens; ++t, token += task.stride) {
    std::memcpy(gathered + t * size, token, sizeof(float) * size);
  }
  return gathered;
}

void Attention::scatter(const Step& step, const Item& item, const float* out) const {
  const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
  for (int t = 0; t < item.tokens; ++t) {
    std::memcpy(attended(step, item, t), out + t * size, sizeof(float) * size);
  }
}

void Attention::add_mass(const Task& task, const Item& item, int token, const Span& span,
                         const Softmax& softmax, int last) const {
  const Row& row = task.step.rows[item.row];
  const int t = item.first_token + token, group = shape_.group();
  float weight = task.step.mass_weights[row.first + t];
  if (weight == 0 || last <= span.first) return;
  float* mass = task.planes.plane_of(item.head).mass_of(row.slot, task.planes.index_of(item.head));
  if (row.draft >= 0) {
    const Draft& draft = plan_.draft(task.step, task.layer, row.draft, item.head);
    mass = draft_mass_ + draft.at + static_cast<size_t>(t) * draft.width;
    std::fill(mass + span.first, mass + last, 0.0f);
    weight = 1.0f;
  }
  kernels_->add_mass(span.probs + static_cast<size_t>(token) * group * span.width,
                     softmax.factor + token * group, group, span.width, span.first, last, weight,
                     row.max_mass, mass);
}

void Attention::accept(const Step& step, size_t layers, const Row& row, int64_t count) const {
  constexpr float kOnce = 1.0f;
  for (size_t layer = 0; layer < layers; ++layer) {
    for (int g = 0; g < shape_.kv_heads; ++g) {
      const Draft& draft = plan_.draft(step, layer, row.draft, g);
      for (int t = 0; t < count; ++t) {
        const float weight = step.mass_weights[row.first + t];
        if (weight == 0) continue;
        const float* own = draft_mass_ + draft.at + static_cast<size_t>(t) * draft.width;
        kernels_->add_mass(own, &kOnce, 1, draft.width, 0, draft.before + t + 1, weight, false,
                           draft.mass);
      }
    }
  }
}

// int8 values scale their probabilities, which a merge still needs: then on a copy.
void Attention::weigh_values(const Plane& plane, const KvView& kv, const Span& span, int rows,
                             float* out, bool disposable, int id) {
  float* probs = span.probs;
  if (plane.type == KvType::kInt8 && !disposable) {
    float* copy = scratch_[id].get(static_cast<size_t>(rows) * span.width);
    std::memcpy(copy, probs + span.first, sizeof(float) * rows * span.width);
    probs = copy - span.first;
  }
  kernels_->weighted_values(plane.type, kv, probs, rows, shape_.head_dim, span.first, span.last,
                            span.width, out);
}

void Attention::scale(float* out, const float* factor, int rows) const {
  for (int r = 0; r < rows; ++r) {
    for (int d = 0; d < shape_.head_dim; ++d) out[r * shape_.head_dim + d] *= factor[r];
  }
}

void Attention::prefill(const Task& task, int at) {
  const Item& item = task.plan.items[at];
  const Row& row = task.step.rows[item.row];
  const Plane& plane = task.planes.plane_of(item.head);
  const int dim = shape_.head_dim, group = shape_.group(), rows = item.tokens * group;
  const int before = task.step.held_of(plane.budget_index, item.row);
  const int keys = before + item.first_token + item.tokens;  // the last query's
  const int tiles = round_up(keys, kLanes) / kLanes, width = tiles * kLanes;
  float* gathered = queries_[task.id].data();
  float* out = gathered + static_cast<size_t>(kMaxQueries) * dim;
  const float* query = queries(task, item, gathered);
  float* probs = scratch_[task.id].get(static_cast<size_t>(rows) * width);
  const KvView kv = plane.view(row.slot, task.planes.index_of(item.head));
  kernels_->logits(plane.type, kv, query, rows, dim, 0, tiles, probs, width);
  float max, factor[kMaxQueries];
  float* mass = part(task.plan, item, plan_.part_floats(row, item.last_tile));
  std::fill(mass, mass + item.last_tile * kLanes, 0.0f);
  for (int t = 0; t < item.tokens; ++t) {
    const int seen = before + item.first_token + t + 1;
    float* lines = probs + static_cast<size_t>(t) * group * width;
    for (int r = 0; r < group; ++r) {
      factor[t * group + r] =
          1.0f / kernels_->exponentials(lines + static_cast<size_t>(r) * width, seen, width, &max);
    }
    const float weight = task.step.mass_weights[row.first + item.first_token + t];
    if (weight != 0) {
      kernels_->add_mass(lines, factor + t * group, group, width, 0, seen, weight, row.max_mass,
                         mass);
    }
  }
  weigh_values(plane, kv, Span{0, keys, width, probs}, rows, out, true, task.id);
  scale(out, factor, rows);
  scatter(task.step, item, out);
}

// Puts the parts of a row and KV head together: the output of split keys, the mass of all.
void Attention::merge(const Task& task, int pair) {
  const int b = pair / shape_.kv_heads, g = pair % shape_.kv_heads;
  const Row& row = task.step.rows[b];
  const Plane& plane = task.planes.plane_of(g);
  const int held = task.step.held_of(plane.budget_index, b), keys = held + row.tokens;
  const LayerPlan& plan = task.plan;
  if (row.decodes()) {
    if (plan.key_parts[pair] == 1) return;
    const int blocks = plan.parts[pair] / plan.key_parts[pair];
    for (int block = 0; block < blocks; ++block) merge_keys(task, pair, block, held);
    return;
  }
  float* mass = plane.mass_of(row.slot, task.planes.index_of(g));
  const float* parts = parts_ + plan.part_at[pair];
  const size_t size = plan_.part_floats(row, round_up(keys, kLanes) / kLanes);
  for (int part = 0; part < plan.parts[pair]; ++part) {
    for (int s = 0; s < keys; ++s) mass[s] += parts[part * size + s];
  }
}

// Merges a block of tokens whose keys were read in parts.
void Attention::merge_keys(const Task& task, int pair, int block, int before) {
  const LayerPlan& plan = task.plan;
  const int group = shape_.group(), dim = shape_.head_dim, count = plan.key_parts[pair];
  const size_t blocks = plan.parts[pair] / count;
  const size_t size = plan_.part_floats(task.step.rows[pair / shape_.kv_heads], 0);
  const float* parts = parts_ + plan.part_at[pair] + block * size;
  const size_t first_item = plan.first[pair] + block;
  const Item& whole = plan.items[first_item];
  const int rows = whole.tokens * group;
  Softmax softmax;
  merge_softmax(parts, blocks * size, count, rows, softmax);
  for (int t = 0; t < whole.tokens; ++t) {
    float* out = attended(task.step, whole, t);
    std::fill(out, out + group * dim, 0.0f);
  }
  for (int p = 0; p < count; ++p) {
    const float* part = parts + p * blocks * size;
    const Item& item = plan.items[first_item + p * blocks];
    Span span;
    span.first = item.first_tile * kLanes;
    span.width = (item.last_tile - item.first_tile) * kLanes;
    span.probs = probs_ + plan.probs_at[first_item + p * blocks] - span.first;
    for (int r = 0; r < rows; ++r) {
      softmax.factor[r] = std::exp(part[r] - softmax.max[r]) / softmax.sum[r];
      float* out = attended(task.step, whole, r / group) + (r % group) * dim;
      const float* own = part + 2 * kLanes * rows + r * dim;
      for (int d = 0; d < dim; ++d) out[d] += softmax.factor[r] * own[d];
    }
    for (int t = 0; t < item.tokens; ++t) {
      add_mass(task, item, t, span, softmax,
               std::min(span.first + span.width, before + item.first_token + t + 1));
    }
  }
}

// Max and sum over all `count` parts, which lie `step` floats apart: max (rows), sum (rows), ...
void Attention::merge_softmax(const float* parts, size_t step, int count, int rows,
                              Softmax& softmax) const {
  for (int r = 0; r < rows; ++r) {
    float max = parts[r], sum = 0;
    for (int p = 1; p < count; ++p) max = std::max(max, parts[p * step + r]);
    for (int p = 0; p < count; ++p) {
      sum += parts[p * step + rows + r] * std::exp(parts[p * step + r] - max);
    }
    softmax.max[r] = max;
    softmax.sum[r] = sum;
  }
}

}  // namespace llamahome
