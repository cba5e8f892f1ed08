// Prefill: a block of a prompt's queries against all keys before them.
#include <algorithm>

#include "attention.h"

namespace llamahome {

void Attention::prefill(const Task& task, int at) {
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
void Attention::prefill_mass(const Task& task, const Item& item, const Span& span,
                             float* factor) const {
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

void Attention::merge_mass(const Task& task, int pair) const {
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

}  // namespace llamahome
