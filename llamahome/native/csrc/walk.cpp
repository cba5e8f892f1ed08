// The operators of a training walk: torch.ops.llamahome.walk_chunk and walk_backward.
// Axes: B batch, H query heads, G KV heads, R = H / G, N tokens, T tokens of a chunk, K kept keys,
// S keys of a chunk, D head_dim.
#include "walk.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "model.h"

namespace llamahome {
namespace {

using at::Tensor;

constexpr int64_t kTasks = 8;  // parts of a backward pass: no threads decide how sums are taken

// Vectors of a tensor (B, X, N, D) whose last axis has no gaps.
struct Vectors {
  explicit Vectors(const Tensor& tensor)
      : data(tensor.data_ptr<float>()),
        batch(tensor.stride(0)),
        head(tensor.stride(1)),
        token(tensor.stride(2)) {
    TORCH_CHECK(tensor.stride(3) == 1 || tensor.size(3) == 1, "a vector has gaps");
  }

  float* at(int64_t b, int64_t h, int64_t t) const {
    return data + b * batch + h * head + t * token;
  }

  float* data;
  int64_t batch, head, token;
};

struct Shape {
  Shape(const Tensor& query, const Tensor& key)
      : batch(query.size(0)),
        heads(query.size(1)),
        groups(key.size(1)),
        length(query.size(2)),
        dim(query.size(3)) {
    TORCH_CHECK(dim % kLanes == 0 && heads % groups == 0, "head_dim must be a multiple of 16");
  }

  int64_t share() const { return heads / groups; }

  // Returns the tokens that attend together, so that they have `rows` query rows at most.
  int64_t together(int64_t tokens, int64_t rows) const {
    const int64_t most = std::max<int64_t>(1, rows / share());
    const int64_t blocks = (tokens + most - 1) / most;
    return (tokens + blocks - 1) / blocks;
  }

  int64_t batch, heads, groups, length, dim;
};

// Pointers to the vectors of some tokens under the query heads of KV head `group`, head by head.
void point(const Vectors& vectors, int64_t share, int64_t b, int64_t group, int64_t start,
           int64_t stop, std::vector<float*>& rows) {
  rows.clear();
  for (int64_t head = group * share; head < (group + 1) * share; ++head) {
    for (int64_t t = start; t < stop; ++t) rows.push_back(vectors.at(b, head, t));
  }
}

// Pointers to the kept vectors, then to a chunk's own.
template <class Position>
void point_kept(const Vectors& vectors, int64_t b, int64_t group, const Position* kept,
                int64_t count, int64_t start, int64_t stop, std::vector<float*>& rows) {
  rows.clear();
  for (int64_t k = 0; k < count; ++k) rows.push_back(vectors.at(b, group, kept[k]));
  for (int64_t t = start; t < stop; ++t) rows.push_back(vectors.at(b, group, t));
}

// Attends with tokens [start, stop) to the kept positions (B, G, K) and to themselves. Writes these
// tokens of out (B, H, N, D) and lse (B, H, N); returns the mass (B, G, S), empty without weights
// (T,).
Tensor walk_chunk(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& kept,
                  int64_t start, int64_t stop, Tensor out, Tensor lse,
                  const std::optional<Tensor>& weights, bool max, double scaling,
                  const std::string& isa) {
  const Shape shape(query, key);
  const Kernels& kernels = *choose_kernels(isa);
  const Vectors queries(query), keys(key), values(value), outs(out);
  TORCH_CHECK(kept.is_contiguous() && kept.scalar_type() == at::kLong && lse.is_contiguous());
  TORCH_CHECK(!weights || (weights->is_contiguous() && weights->size(0) == stop - start));
  const int64_t tokens = stop - start, count = kept.size(2), seen = count + tokens;
  const int64_t step = shape.together(tokens, kForwardRows), blocks = (tokens + step - 1) / step;
  const int64_t heads = shape.batch * shape.groups;
  // Each block's mass apart, added in order: threads do not decide the sum.
  Tensor parts = at::zeros({heads, blocks, weights ? seen : 0}, at::kFloat);
  const float* weight = weights ? weights->data_ptr<float>() : nullptr;
  const int64_t* places = kept.data_ptr<int64_t>();
  float *mass = parts.data_ptr<float>(), *sums = lse.data_ptr<float>();
  at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float*> q, k, v, o, l;
    std::vector<float> work;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks, b = head / shape.groups, g = head % shape.groups;
      const int64_t from = start + task % blocks * step, to = std::min(stop, from + step);
      point(queries, shape.share(), b, g, from, to, q);
      point(outs, shape.share(), b, g, from, to, o);
      point_kept(keys, b, g, places + head * count, count, start, to, k);
      point_kept(values, b, g, places + head * count, count, start, to, v);
      l.clear();
      for (int64_t h = g * shape.share(); h < (g + 1) * shape.share(); ++h) {
        for (int64_t t = from; t < to; ++t)
          l.push_back(sums + (b * shape.heads + h) * shape.length + t);
      }
      ChunkRows rows{.heads = static_cast<int>(shape.share()),
                     .tokens = static_cast<int>(to - from),
                     .first = static_cast<int>(count + from - start),
                     .dim = static_cast<int>(shape.dim),
                     .scaling = static_cast<float>(scaling),
                     .queries = q.data(),
                     .keys = k.data(),
                     .values = v.data()};
      work.resize(ChunkForward::work(rows.padded(), rows.seen(), rows.dim));
      rows.work = work.data();
      kernels.chunk_forward({.rows = rows,
                             .out = o.data(),
                             .lse = l.data(),
                             .weights = weight ? weight + (from - start) : nullptr,
                             .max = max,
                             .mass = mass + task * parts.size(2)});
    }
  });
  return parts.view({shape.batch, shape.groups, blocks, -1}).sum(2);
}

// Computes the gradients of query, key and value (float32), and of a bias of 0 on the
// logits of kept entries (B, G, K in all). `kept` (B, G, K in all) int32 has the positions kept
// before each chunk, one chunk after another, `counts` of them.
std::tuple<Tensor, Tensor, Tensor, Tensor> walk_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& lse, const Tensor& kept, std::vector<int64_t> counts,
    int64_t interval, bool with_bias, double scaling, const std::string& isa) {
  const Shape shape(query, key);
  const Kernels& kernels = *choose_kernels(isa);
  TORCH_CHECK(kept.is_contiguous() && kept.scalar_type() == at::kInt && lse.is_contiguous());
  const int64_t chunks = static_cast<int64_t>(counts.size()), heads = shape.batch * shape.groups;
  std::vector<int64_t> starts(chunks + 1, 0);
  for (int64_t c = 0; c < chunks; ++c) starts[c + 1] = starts[c] + counts[c];
  TORCH_CHECK(starts[chunks] == kept.size(2) && chunks * interval >= shape.length);
  const int64_t parts = std::min(chunks, std::max<int64_t>(1, kTasks / heads));
  // Tokens before heads, as a model projects them: what comes next copies nothing.
  const auto by_token = [&] {
    return at::zeros({parts, shape.batch, shape.length, shape.groups, shape.dim}, at::kFloat)
        .transpose(2, 3);
  };
  Tensor query_grad =
      at::empty({shape.batch, shape.length, shape.heads, shape.dim}, at::kFloat).transpose(1, 2);
  Tensor key_grads = by_token(), value_grads = by_token();
  Tensor bias_grad =
      at::zeros({shape.batch, shape.groups, with_bias ? kept.size(2) : 0}, at::kFloat);
  const Vectors queries(query), keys(key), values(value), outs(out), grads(grad), dq(query_grad);
  const int32_t* places = kept.data_ptr<int32_t>();
  float *bias = bias_grad.data_ptr<float>(), *sums = lse.data_ptr<float>();
  at::parallel_for(0, heads * parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float*> q, k, v, g_rows, o, q_grad, k_grad, v_grad;
    std::vector<float> work, own_lse, delta, own_bias;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / parts, part = task % parts;
      const int64_t b = head / shape.groups, g = head % shape.groups;
      const Vectors dk(key_grads[part]), dv(value_grads[part]);
      for (int64_t c = chunks * part / parts; c < chunks * (part + 1) / parts; ++c) {
        const int64_t start = c * interval, stop = std::min(shape.length, start + interval);
        const int64_t count = counts[c], first = head * kept.size(2) + starts[c];
        const int64_t step = shape.together(stop - start, kBackwardRows);
        for (int64_t from = start; from < stop; from += step) {
          const int64_t to = std::min(stop, from + step);
          point(queries, shape.share(), b, g, from, to, q);
          point(grads, shape.share(), b, g, from, to, g_rows);
          point(outs, shape.share(), b, g, from, to, o);
          point(dq, shape.share(), b, g, from, to, q_grad);
          point_kept(keys, b, g, places + first, count, start, to, k);
          point_kept(values, b, g, places + first, count, start, to, v);
          point_kept(dk, b, g, places + first, count, start, to, k_grad);
          point_kept(dv, b, g, places + first, count, start, to, v_grad);
          ChunkRows rows{.heads = static_cast<int>(shape.share()),
                         .tokens = static_cast<int>(to - from),
                         .first = static_cast<int>(count + from - start),
                         .dim = static_cast<int>(shape.dim),
                         .scaling = static_cast<float>(scaling),
                         .queries = q.data(),
                         .keys = k.data(),
                         .values = v.data()};
          work.resize(ChunkBackward::work(rows.padded(), rows.dim));
          rows.work = work.data();
          own_lse.assign(rows.padded(), 0.0f);
          delta.assign(rows.padded(), 0.0f);
          own_bias.assign(rows.seen(), 0.0f);
          for (int i = 0; i < rows.rows(); ++i) {
            const int64_t h = g * shape.share() + i / rows.tokens;
            own_lse[i] = sums[(b * shape.heads + h) * shape.length + from + i % rows.tokens];
            kernels.dots(o[i], g_rows[i], 1, rows.dim, &delta[i]);
          }
          kernels.chunk_backward({.rows = rows,
                                  .grads = g_rows.data(),
                                  .lse = own_lse.data(),
                                  .delta = delta.data(),
                                  .query_grads = q_grad.data(),
                                  .key_grads = k_grad.data(),
                                  .value_grads = v_grad.data(),
                                  .bias_grads = with_bias ? own_bias.data() : nullptr});
          for (int64_t i = 0; with_bias && i < count; ++i) bias[first + i] += own_bias[i];
        }
      }
    }
  });
  return {query_grad, key_grads.sum(0), value_grads.sum(0), bias_grad};
}

}  // namespace
}  // namespace llamahome

TORCH_LIBRARY_FRAGMENT(llamahome, library) {
  library.def(
      "walk_chunk(Tensor query, Tensor key, Tensor value, Tensor kept, int start, int stop, "
      "Tensor(a!) out, Tensor(b!) lse, Tensor? weights, bool max, float scaling, "
      "str isa=\"auto\") -> Tensor",
      &llamahome::walk_chunk);
  library.def(
      "walk_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
      "Tensor kept, int[] counts, int interval, bool with_bias, float scaling, "
      "str isa=\"auto\") -> (Tensor, Tensor, Tensor, Tensor)",
      &llamahome::walk_backward);
}
