// The kernels of one instruction set: a table of functions, once for avx512, avx2 and portable.
// Axes: M tokens, N outputs, K inputs, D head_dim, S keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "walk.h"

namespace llamahome {

constexpr int kLanes = 16;       // outputs of a panel, keys of a tile
constexpr int kGroup = 64;       // inputs that share a scale
constexpr int kMaxQueries = 24;  // query rows that attend together

enum class KvType : int { kFloat = 0, kHalf = 1, kInt8 = 2 };
enum class Epilogue : int { kStore = 0, kAdd = 1, kSiluMul = 2 };

// A linear layer in panels of 16 outputs, two of which are computed together.
// int8: weight + 128 in (N / 16, K / 64, 16, 16, 4), with a bfloat16 scale per output and group.
// float: (N / 16, K, 16).
struct LinearData {
  const uint8_t* int8_weight = nullptr;
  const uint16_t* scales = nullptr;  // (N / 16, K / 64, 16), bfloat16
  const float* float_weight = nullptr;
  const float* bias = nullptr;  // (N,) in the order of the panels
  int outputs = 0;              // a multiple of 32, padding included
  int inputs = 0;               // padding included; a multiple of 64 for int8
};

// The low-rank part of a linear layer for one adapter: y += up (down x), scaled.
struct AdapterData {
  const float* down = nullptr;  // (rank, K)
  const float* up = nullptr;    // (N / 16, rank, 16) in the order of the panels
  int rank = 0;
};

// Input of a linear layer: tokens as float, and as int8 in groups.
struct Activations {
  const float* values = nullptr;  // (M, K)
  const int8_t* quantized = nullptr;
  const float* scales = nullptr;                 // (M, K / 64)
  const int32_t* offsets = nullptr;              // (M, K / 64): -128 x the group's sum
  const float* const* low = nullptr;             // (M): down x of the token's adapter
  const AdapterData* const* adapters = nullptr;  // (M), null for none
};

// Keys and values of one slot and KV head. Keys are in tiles of 16: (S / 16, D, 16); values (S, D).
struct KvView {
  void* keys = nullptr;
  void* values = nullptr;
  float* key_scales = nullptr;  // (S,), int8 only
  float* value_scales = nullptr;
};

struct Kernels {
  const char* name;
  // float16 to float32; `count` is a multiple of 16.
  void (*halves)(const uint16_t* from, int count, float* out);
  // RMSNorm of one token.
  void (*rms_norm)(const float* x, const float* weight, float eps, int size, float* out);
  // One token to int8 in groups of 64; `padded` >= size is a multiple of 64.
  void (*quantize)(const float* x, int size, int padded, int8_t* q, float* scales,
                   int32_t* offsets);
  // A group of 64 weights to steps of its scale, + 128; returns the scale, bfloat16.
  uint16_t (*pack_group)(const float* from, uint8_t* steps);
  // Outputs [32 * first_pair, 32 * (first_pair + pairs)) of a linear layer for M tokens. `after` is
  // the memory to fetch for the next call; null stands for the pairs that follow.
  void (*linear)(const LinearData& linear, const Activations& in, int tokens, int first_pair,
                 int pairs, Epilogue epilogue, float* out, int out_stride, const void* after);
  // Dot products of x with each row (count, size).
  void (*dots)(const float* rows, const float* x, int count, int size, float* out);
  // Rotates the halves of one head in place (RoPE), and multiplies by `factor`.
  void (*rotate)(float* x, const float* cos, const float* sin, int dim, float factor);
  // Writes one key and value at `place` of a slot.
  void (*write)(KvType type, const KvView& kv, int place, const float* key, const float* value,
                int dim);
  // out (queries, stride) = query (queries, D) x keys of tiles [first_tile, last_tile).
  void (*logits)(KvType type, const KvView& kv, const float* query, int queries, int dim,
                 int first_tile, int last_tile, float* out, int stride);
  // Replaces [0, size) of a row by exp(x - max), and the rest up to `padded` by 0. Returns the sum.
  float (*exponentials)(float* row, int size, int padded, float* max);
  // out (queries, D) = probabilities (queries, stride) x values [first, last). int8 values change
  // the probabilities.
  void (*weighted_values)(KvType type, const KvView& kv, float* probs, int queries, int dim,
                          int first, int last, int stride, float* out);
  // mass[s] += weight * (sum or max over rows of probs[row][s] * factors[row]).
  void (*add_mass)(const float* probs, const float* factors, int rows, int stride, int first,
                   int last, float weight, bool max, float* mass);
  void (*chunk_forward)(const ChunkForward& in);
  void (*chunk_backward)(const ChunkBackward& in);
};

const Kernels* avx512_kernels();  // null where this build or machine has none
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace llamahome
