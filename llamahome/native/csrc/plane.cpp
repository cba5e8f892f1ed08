#include "plane.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "team.h"

namespace llamahome {
namespace {

template <class T>
void move_entry(const KvView& kv, int dim, int from, int to) {
  T* keys = static_cast<T*>(kv.keys);
  T* values = static_cast<T*>(kv.values);
  const T* source = keys + static_cast<size_t>(from / kLanes) * dim * kLanes + from % kLanes;
  T* target = keys + static_cast<size_t>(to / kLanes) * dim * kLanes + to % kLanes;
  for (int d = 0; d < dim; ++d) target[d * kLanes] = source[d * kLanes];
  std::memcpy(values + static_cast<size_t>(to) * dim, values + static_cast<size_t>(from) * dim,
              sizeof(T) * dim);
}

}  // namespace

void Plane::compact(const Compaction& what, Team& team) const {
  const int items = what.rows * heads;
  std::atomic<int> next{0};
  const std::function<void(int)> task = [&](int) {
    Ranking scratch{std::vector<int>(what.count), std::vector<double>(what.count),
                    std::vector<char>(what.count)};
    for (int item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
      compact_head(what, item / heads, item % heads, scratch);
    }
  };
  team.run(task);
}

void Plane::compact_head(const Compaction& what, int row, int head, Ranking& scratch) const {
  constexpr double kMost = std::numeric_limits<double>::infinity();
  const int slot = static_cast<int>(what.slots[row]);
  const double* score = what.scores + row * what.row_stride + head * what.head_stride;
  const int64_t* position = positions_of(slot, head);
  auto& [order, rank, stays] = scratch;
  for (int i = 0; i < what.count; ++i) {
    const bool safe =
        position[i] < what.sinks[row] || position[i] >= what.lengths[row] - what.recent;
    rank[i] = safe ? kMost : std::isnan(score[i]) ? -kMost : score[i];
    order[i] = i;
  }
  std::nth_element(
      order.begin(), order.begin() + what.budget - 1, order.end(),
      [&rank = rank](int a, int b) { return rank[a] != rank[b] ? rank[a] > rank[b] : a < b; });
  std::fill(stays.begin(), stays.end(), 0);
  for (int i = 0; i < what.budget; ++i) stays[order[i]] = 1;
  for (int from = 0, to = 0; from < what.count; ++from) {
    if (stays[from]) move(slot, head, from, to++);
  }
}

void Plane::move(int slot, int head, int from, int to) const {
  if (from == to) return;
  const KvView kv = view(slot, head);
  const int64_t at = first(slot, head);
  if (type == KvType::kFloat) {
    move_entry<float>(kv, dim, from, to);
  } else if (type == KvType::kHalf) {
    move_entry<uint16_t>(kv, dim, from, to);
  } else {
    move_entry<int8_t>(kv, dim, from, to);
    key_scales[at + to] = key_scales[at + from];
    value_scales[at + to] = value_scales[at + from];
  }
  mass[at + to] = mass[at + from];
  positions[at + to] = positions[at + from];
  if (features != nullptr) features[at + to] = features[at + from];
}

}  // namespace llamahome
