// Quantisation of float32 weights into int8 panels. Axes: N outputs, K inputs.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels.h"

namespace llamahome {

// The layout of `LinearData`; `rows` (N padded,) are the weight's rows in the order of the panels,
// -1 for none.
struct PackJob {
  const float* weight;  // (N, K)
  const int64_t* rows;
  int panels, inputs;
  uint8_t* packed;
  uint16_t* scales;
};

inline void pack_panel(const Kernels& kernels, const PackJob& job, int panel) {
  constexpr int kQuad = 4;
  const int groups = (job.inputs + kGroup - 1) / kGroup;
  alignas(64) float from[kGroup];
  alignas(64) uint8_t steps[kGroup];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t row = job.rows[panel * kLanes + lane];
    for (int group = 0; group < groups; ++group) {
      const int first = group * kGroup;
      const int count = row < 0 ? 0 : std::min(kGroup, job.inputs - first);
      if (count < kGroup) std::fill(from, from + kGroup, 0.0f);
      if (count > 0)
        std::memcpy(from, job.weight + row * job.inputs + first, count * sizeof(float));
      const size_t at = static_cast<size_t>(panel) * groups + group;
      job.scales[at * kLanes + lane] = kernels.pack_group(from, steps);
      uint8_t* to = job.packed + at * kGroup * kLanes + lane * kQuad;
      for (int quad = 0; quad < kGroup / kQuad; ++quad) {
        std::memcpy(to + quad * kLanes * kQuad, steps + quad * kQuad, kQuad);
      }
    }
  }
}

inline void pack_int8(const Kernels& kernels, const PackJob& job, int threads) {
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int panel = next.fetch_add(1); panel < job.panels; panel = next.fetch_add(1)) {
      pack_panel(kernels, job, panel);
    }
  };
  std::vector<std::thread> others;
  for (int id = 1; id < threads; ++id) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace llamahome
