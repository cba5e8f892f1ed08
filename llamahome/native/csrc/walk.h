// Attention of one chunk of a training sequence under one KV head, forward and backward. Rows come
// by pointer, so nothing is gathered. Axes: R query heads of the KV head, T tokens, S keys,
// D head_dim.
#pragma once

#include <cstddef>

namespace llamahome {

constexpr int kForwardRows = 96;    // most query rows at a time: their probabilities fit the cache
constexpr int kBackwardRows = 192;  // the same for the way back, which takes keys in blocks
constexpr int kBackwardKeys = 48;

// Query rows, head by head, and all keys that the last token sees: token t sees [0, first + t].
// dim is a multiple of 16.
struct ChunkRows {
  int heads = 0;
  int tokens = 0;
  int first = 0;
  int dim = 0;
  float scaling = 0;
  const float* const* queries = nullptr;  // (R * T)
  const float* const* keys = nullptr;     // (S)
  const float* const* values = nullptr;   // (S)
  float* work = nullptr;

  int rows() const { return heads * tokens; }
  int padded() const { return (rows() + 15) / 16 * 16; }
  int seen() const { return first + tokens; }
};

struct ChunkForward {
  ChunkRows rows;
  float* const* out = nullptr;     // (R * T)
  float* const* lse = nullptr;     // (R * T): logarithm of the sum of exponentials
  const float* weights = nullptr;  // (T): of each query in the mass; null for no mass
  bool max = false;                // mass is the max over R, not the sum
  float* mass = nullptr;           // (S), added to

  static size_t work(int padded, int seen, int dim) {
    return static_cast<size_t>(padded) * (dim + seen + 4);
  }
};

// Gradients of queries are written, the others added to; delta is the product of out and its
// gradient.
struct ChunkBackward {
  ChunkRows rows;
  const float* const* grads = nullptr;  // (R * T), of out
  const float* lse = nullptr;           // (R * T padded)
  const float* delta = nullptr;         // (R * T padded)
  float* const* query_grads = nullptr;  // (R * T)
  float* const* key_grads = nullptr;    // (S)
  float* const* value_grads = nullptr;  // (S)
  float* bias_grads = nullptr;          // (S) of a bias of each key's logits; null for none

  static size_t work(int padded, int dim) {
    return 2 * static_cast<size_t>(padded) * (dim + kBackwardKeys);
  }
};

}  // namespace llamahome
