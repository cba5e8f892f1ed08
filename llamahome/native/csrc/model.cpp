// A Llama over slots on the CPU: one parallel region per step, for any mix of prefill and decode.
// Axes: M tokens of a step, B rows, H query heads, G KV heads, D head_dim, S keys.
#include <torch/custom_class.h>
#include <torch/library.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/slice.h>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace llamahome {
namespace {

using at::Tensor;

int round_up(int value, int step) { return (value + step - 1) / step * step; }

const Kernels* choose_kernels(const std::string& isa) {
  const Kernels* all[] = {avx512_kernels(), avx2_kernels(), portable_kernels()};
  for (const Kernels* kernels : all) {
    if (kernels != nullptr && (isa == "auto" || isa == kernels->name)) return kernels;
  }
  TORCH_CHECK(false, "isa='", isa, "' does not run on this machine; use 'auto'");
}

struct Linear : torch::CustomClassHolder {
  // weight: uint8 (N / 16, K / 64, 16, 16, 4) with scales bfloat16 (N / 16, K / 64, 16), or
  // float32 (N / 16, K, 16) without; bias (N,) or none.
  Linear(Tensor weight, std::optional<Tensor> scales, std::optional<Tensor> bias, int64_t inputs)
      : weight_(weight.contiguous()), scales_(scales), bias_(bias), inputs_(inputs) {
    data.outputs = static_cast<int>(weight_.size(0)) * kLanes;
    TORCH_CHECK(data.outputs % (2 * kLanes) == 0, "panels come in pairs");
    if (scales_) {
      TORCH_CHECK(weight_.scalar_type() == at::kByte && scales_->scalar_type() == at::kBFloat16);
      data.int8_weight = weight_.data_ptr<uint8_t>();
      data.scales = reinterpret_cast<const uint16_t*>(scales_->data_ptr());
      data.inputs = static_cast<int>(weight_.size(1)) * kGroup;
    } else {
      TORCH_CHECK(weight_.scalar_type() == at::kFloat);
      data.float_weight = weight_.data_ptr<float>();
      data.inputs = static_cast<int>(weight_.size(1));
    }
    if (bias_) data.bias = bias_->data_ptr<float>();
  }

  // down (rank, K), up (N / 16, rank, 16), float32; `index` counts adapters from 0.
  void set_adapter(int64_t index, Tensor down, Tensor up) {
    TORCH_CHECK(down.size(1) == inputs_ && up.size(0) * kLanes == data.outputs);
    if (static_cast<int64_t>(adapters.size()) <= index) adapters.resize(index + 1);
    AdapterData& adapter = adapters[index];
    adapter.down = down.data_ptr<float>();
    adapter.up = up.data_ptr<float>();
    adapter.rank = static_cast<int>(down.size(0));
    kept_.push_back(down);
    kept_.push_back(up);
  }

  LinearData data;
  std::vector<AdapterData> adapters;
  int inputs() const { return static_cast<int>(inputs_); }
  int pairs() const { return data.outputs / (2 * kLanes); }
  const void* pair(int index) const {
    const size_t size = static_cast<size_t>(data.inputs) * 2 * kLanes;
    if (int8()) return data.int8_weight + index * size;
    return data.float_weight + index * size;
  }
  bool int8() const { return data.int8_weight != nullptr; }

 private:
  Tensor weight_;
  std::optional<Tensor> scales_, bias_;
  int64_t inputs_;
  std::vector<Tensor> kept_;
};

// The KV memory of some heads of one layer that share a budget.
struct Plane {
  Tensor keys, values, mass, positions, key_scales, value_scales;
  KvType type;
  int capacity;  // a multiple of 16
  int heads;
  int budget_index;

  KvView view(int slot, int head) const {
    const int64_t row = static_cast<int64_t>(slot) * heads + head;
    const int64_t size = row * capacity * values.size(3) * values.element_size();
    KvView kv;
    kv.keys = static_cast<const char*>(keys.data_ptr()) + size;
    kv.values = static_cast<const char*>(values.data_ptr()) + size;
    if (type == KvType::kInt8) {
      kv.key_scales = key_scales.data_ptr<float>() + row * capacity;
      kv.value_scales = value_scales.data_ptr<float>() + row * capacity;
    }
    return kv;
  }
  float* mass_of(int slot, int head) const {
    return mass.data_ptr<float>() + (static_cast<int64_t>(slot) * heads + head) * capacity;
  }
  int64_t* positions_of(int slot, int head) const {
    return positions.data_ptr<int64_t>() + (static_cast<int64_t>(slot) * heads + head) * capacity;
  }
};

struct Norm {
  std::vector<Tensor> weights;  // of the model, then of each adapter; undefined where it has none

  const float* of(int adapter) const {
    const size_t index = static_cast<size_t>(adapter + 1);
    const bool own = index < weights.size() && weights[index].defined();
    return weights[own ? index : 0].data_ptr<float>();
  }
};

struct Layer {
  Norm attention_norm, mlp_norm;
  c10::intrusive_ptr<Linear> qkv, out, gate_up, down;
  std::vector<Plane> planes;
  std::vector<std::pair<int, int>> head;  // KV head -> plane, index in it
};

struct Shape {
  int hidden, heads, kv_heads, head_dim, intermediate;
  float eps, scaling;

  int group() const { return heads / kv_heads; }
  int attention() const { return heads * head_dim; }
};

// A request's part of a step.
struct Row {
  int slot, first, tokens;  // of the flat list of tokens
  int64_t length;           // tokens before this step
  bool max;                 // mass is the max over a group, not the sum
  int draft;                // place among the rows whose tokens are guesses; -1 for the others
};

// What the guesses of a row and KV head would add to the mass, each by itself: (tokens, width).
struct Draft {
  float* mass;  // where it goes
  int before;   // entries ahead of the first guess
  int width;
  size_t at;
};

// Queries of a row, or keys of one, that one thread attends for.
struct Item {
  int row, head;
  int first_token, tokens;
  int first_tile, last_tile;
  int part;  // among the items of its row and head, those of the same keys together
};

// Buffers that grow to the largest step and stay.
struct Buffer {
  std::unique_ptr<float[], void (*)(float*)> data{nullptr, [](float* p) { std::free(p); }};
  size_t size = 0;

  float* get(size_t count) {
    if (count > size) {
      data.reset(static_cast<float*>(std::aligned_alloc(64, round_up(count * 4, 64))));
      TORCH_CHECK(data != nullptr, "out of memory: ", count * 4, " bytes");
      size = count;
    }
    return data.get();
  }
  static size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
};

// What a linear layer reads, of all tokens or, for few tokens, one copy for each thread.
struct Quantized {
  Buffer values, scales, offsets, bytes, low;
  std::vector<const float*> low_of;
  std::vector<const AdapterData*> adapter_of;
  Activations view;
};

class Model : public torch::CustomClassHolder {
 public:
  Model(std::vector<int64_t> shape, double eps, double scaling, int64_t threads, std::string isa)
      : shape_{static_cast<int>(shape.at(0)), static_cast<int>(shape.at(1)),
               static_cast<int>(shape.at(2)), static_cast<int>(shape.at(3)),
               static_cast<int>(shape.at(4)), static_cast<float>(eps),
               static_cast<float>(scaling)},
        kernels_(choose_kernels(isa)),
        team_(static_cast<int>(threads)),
        shared_{1},
        own_(team_.size()),
        scratch_(team_.size()),
        queries_(team_.size()) {
    TORCH_CHECK(shape_.head_dim % kLanes == 0 && shape_.group() <= kMaxQueries,
                "head_dim must be a multiple of 16, a group at most ", kMaxQueries, " heads");
  }

  std::string isa() const { return kernels_->name; }
  int64_t threads() const { return team_.size(); }

  // embedding (V, hidden), float32 or float16; cos and sin (positions, D / 2), float32.
  void set_ends(Tensor embedding, Tensor norm, c10::intrusive_ptr<Linear> head) {
    embedding_ = embedding.contiguous();
    final_norm_.weights = {norm};
    head_ = head;
  }
  void set_rotary(Tensor cos, Tensor sin) {
    cos_ = cos.contiguous();
    sin_ = sin.contiguous();
  }

  void add_layer(Tensor attention_norm, c10::intrusive_ptr<Linear> qkv,
                 c10::intrusive_ptr<Linear> out, Tensor mlp_norm,
                 c10::intrusive_ptr<Linear> gate_up, c10::intrusive_ptr<Linear> down) {
    Layer layer;
    layer.attention_norm.weights = {attention_norm};
    layer.mlp_norm.weights = {mlp_norm};
    layer.qkv = qkv;
    layer.out = out;
    layer.gate_up = gate_up;
    layer.down = down;
    layer.head.resize(shape_.kv_heads);
    layers_.push_back(std::move(layer));
  }

  // Of adapter `index`: norms that it trained; which of a layer's, or the last (layer -1).
  void set_adapter_norm(int64_t layer, bool mlp, int64_t index, Tensor weight) {
    Norm& norm = layer < 0 ? final_norm_
                 : mlp     ? layers_.at(layer).mlp_norm
                           : layers_.at(layer).attention_norm;
    if (static_cast<int64_t>(norm.weights.size()) <= index + 1) norm.weights.resize(index + 2);
    norm.weights[index + 1] = weight;
  }

  // keys (slots, heads, capacity / 16, D, 16), values (slots, heads, capacity, D).
  void add_plane(int64_t layer, std::vector<int64_t> heads, int64_t budget_index, Tensor keys,
                 Tensor values, Tensor mass, Tensor positions, std::optional<Tensor> key_scales,
                 std::optional<Tensor> value_scales) {
    Layer& to = layers_.at(layer);
    Plane plane;
    plane.keys = keys;
    plane.values = values;
    plane.mass = mass;
    plane.positions = positions;
    plane.type = keys.scalar_type() == at::kFloat  ? KvType::kFloat
                 : keys.scalar_type() == at::kHalf ? KvType::kHalf
                                                   : KvType::kInt8;
    if (plane.type == KvType::kInt8) {
      plane.key_scales = key_scales.value();
      plane.value_scales = value_scales.value();
    }
    plane.capacity = static_cast<int>(values.size(2));
    plane.heads = static_cast<int>(heads.size());
    plane.budget_index = static_cast<int>(budget_index);
    for (size_t i = 0; i < heads.size(); ++i) {
      to.head.at(heads[i]) = {static_cast<int>(to.planes.size()), static_cast<int>(i)};
    }
    to.planes.push_back(std::move(plane));
  }

  // One step. ids (M,) int64; rows int64 (B, 5): slot, tokens, length, mass by max, whether its
  // tokens are guesses that `settle` decides on; held int64 (budgets, B): entries in the slot
  // before; weights (M,) float32: of each query in the mass; adapters (M,) int64, -1 for none;
  // wanted (L,) int64: tokens whose outcome is asked for. Returns the last hidden states (L, hidden),
  // normed, and with `with_logits` the logits (L, V padded).
  std::tuple<Tensor, Tensor> forward(Tensor ids, Tensor rows, Tensor held, Tensor weights,
                                     Tensor adapters, Tensor wanted, bool with_logits) {
    begin(ids, rows, held, weights, adapters);
    const int64_t count = wanted.size(0);
    Tensor hidden = at::empty({count, shape_.hidden}, at::kFloat);
    Tensor logits = logits_for(with_logits ? count : 0);
    const std::function<void(int)> task = [&](int id) {
      embed(id);
      team_.barrier();
      for (size_t layer = 0; layer < layers_.size(); ++layer) attention(layer, id), mlp(layer, id);
      finish(wanted, hidden, logits, with_logits, id);
    };
    team_.run(task);
    return {hidden, logits};
  }

  // After a step: which of its guesses were right. rows int64 (n, 2): index of a row of guesses, how
  // many of its tokens stay. Their mass is added as if each had been a step of its own; entries of
  // the others are written over by the next step.
  void settle(Tensor rows) {
    const size_t stride = static_cast<size_t>(drafted_rows_) * shape_.kv_heads;
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const Row& row = rows_.at(rows.data_ptr<int64_t>()[2 * i]);
      const int64_t count = rows.data_ptr<int64_t>()[2 * i + 1];
      TORCH_CHECK(row.draft >= 0 && count <= row.tokens, "no such guesses");
      for (size_t layer = 0; layer < layers_.size(); ++layer) {
        for (int g = 0; g < shape_.kv_heads; ++g) {
          add_draft(row, drafts_[layer * stride + row.draft * shape_.kv_heads + g], count);
        }
      }
    }
  }

  // Fresh memory costs page faults at every step: the last step's is used again, if nobody has it.
  Tensor logits_for(int64_t count) {
    const int64_t outputs = head_->data.outputs;
    if (!logits_.defined() || logits_.size(0) < count || logits_.storage().use_count() > 1) {
      logits_ = at::empty({count, outputs}, at::kFloat);
    }
    return logits_.slice(0, 0, count);
  }

  // Keeps, of `count` entries of each of these slots, the `budget` that are protected or score
  // highest (ties: the older), in order; scores (rows, heads, >= count) float64.
  void compact(int64_t layer, int64_t plane_index, Tensor slots, Tensor scores, int64_t count,
               int64_t budget, int64_t recent, Tensor lengths, Tensor sinks) {
    Plane& plane = layers_.at(layer).planes.at(plane_index);
    const int64_t* slot = slots.data_ptr<int64_t>();
    const int64_t* length = lengths.data_ptr<int64_t>();
    const int64_t* sink = sinks.data_ptr<int64_t>();
    TORCH_CHECK(scores.scalar_type() == at::kDouble && scores.stride(2) == 1);
    const int items = static_cast<int>(slots.size(0)) * plane.heads;
    std::atomic<int> next{0};
    const std::function<void(int)> task = [&](int) {
      std::vector<int> order(count);
      std::vector<double> rank(count);
      std::vector<char> stays(count);
      for (int item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
        const int row = item / plane.heads, head = item % plane.heads;
        const double* score =
            scores.data_ptr<double>() + row * scores.stride(0) + head * scores.stride(1);
        const int64_t* position = plane.positions_of(slot[row], head);
        for (int i = 0; i < count; ++i) {
          constexpr double kMost = std::numeric_limits<double>::infinity();
          const bool safe = position[i] < sink[row] || position[i] >= length[row] - recent;
          rank[i] = safe ? kMost : std::isnan(score[i]) ? -kMost : score[i];
          order[i] = i;
        }
        std::nth_element(order.begin(), order.begin() + budget - 1, order.end(), [&](int a, int b) {
          return rank[a] != rank[b] ? rank[a] > rank[b] : a < b;
        });
        std::fill(stays.begin(), stays.end(), 0);
        for (int i = 0; i < budget; ++i) stays[order[i]] = 1;
        for (int from = 0, to = 0; from < count; ++from) {
          if (stays[from]) move(plane, slot[row], head, from, to++);
        }
      }
    };
    team_.run(task);
  }

 private:
  // ---- a step's tokens -------------------------------------------------------------------------

  void begin(const Tensor& ids, const Tensor& rows, const Tensor& held, const Tensor& weights,
             const Tensor& adapters) {
    tokens_ = static_cast<int>(ids.size(0));
    ids_ = ids.data_ptr<int64_t>();
    weights_.assign(weights.data_ptr<float>(), weights.data_ptr<float>() + tokens_);
    adapters_ = adapters.data_ptr<int64_t>();
    held_ = held.data_ptr<int64_t>();
    num_rows_ = static_cast<int>(rows.size(0));
    rows_.clear();
    position_of_.resize(tokens_);
    int first = 0;
    drafted_rows_ = 0;
    for (int b = 0; b < num_rows_; ++b) {
      const int64_t* row = rows.data_ptr<int64_t>() + 5 * b;
      const int draft = row[4] != 0 ? drafted_rows_++ : -1;
      rows_.push_back({static_cast<int>(row[0]), first, static_cast<int>(row[1]), row[2], row[3] != 0, draft});
      for (int t = 0; t < row[1]; ++t) position_of_[first + t] = row[2] + t;
      first += static_cast<int>(row[1]);
    }
    TORCH_CHECK(first == tokens_, "rows bring ", first, " tokens, ids ", tokens_);
    few_ = tokens_ <= kFew;
    x_ = hidden_.get(static_cast<size_t>(tokens_) * shape_.hidden);
    const int qkv = layers_[0].qkv->data.outputs;
    qkv_ = qkv_buffer_.get(static_cast<size_t>(tokens_) * qkv);
    attended_ = attended_buffer_.get(static_cast<size_t>(tokens_) * shape_.attention());
    mlp_ = mlp_buffer_.get(static_cast<size_t>(tokens_) * layers_[0].gate_up->data.outputs / 2);
    const size_t phases = layers_.size() * 7 + 4;
    if (counters_.size() < phases) counters_ = std::vector<std::atomic<int>>(phases);
    for (auto& counter : counters_) counter.store(0, std::memory_order_relaxed);
    plan_of_.clear();
    plans_.clear();
    plan();
    plan_drafts();
    reserve();
  }

  void plan_drafts() {
    drafts_.clear();
    if (drafted_rows_ == 0) return;
    size_t size = 0;
    for (const Layer& layer : layers_) {
      for (int b = 0; b < num_rows_; ++b) {
        if (rows_[b].draft < 0) continue;
        for (const auto& [index, head] : layer.head) {
          const Plane& plane = layer.planes[index];
          const int before = held(plane, b), width = round_up(before + rows_[b].tokens, kLanes);
          drafts_.push_back({plane.mass_of(rows_[b].slot, head), before, width, size});
          if (adds_mass(rows_[b])) size += static_cast<size_t>(rows_[b].tokens) * width;
        }
      }
    }
    draft_mass_ = draft_buffer_.get(size);
  }

  bool adds_mass(const Row& row) const {
    const auto first = weights_.begin() + row.first;
    return std::any_of(first, first + row.tokens, [](float weight) { return weight != 0; });
  }

  void add_draft(const Row& row, const Draft& draft, int64_t count) const {
    constexpr float kOnce = 1.0f;
    for (int t = 0; t < count; ++t) {
      const float weight = weights_[row.first + t];
      if (weight == 0) continue;
      kernels_->add_mass(draft_mass_ + draft.at + static_cast<size_t>(t) * draft.width, &kOnce, 1,
                         draft.width, 0, draft.before + t + 1, weight, false, draft.mass);
    }
  }

  // Everything that threads will need, here where running out of memory can still be an error.
  void reserve() {
    int inputs = 0, rank = 0;
    const auto look = [&](const Linear& linear) {
      inputs = std::max(inputs, std::max(linear.inputs(), linear.data.inputs));
      for (const AdapterData& adapter : linear.adapters) rank = std::max(rank, adapter.rank);
    };
    for (const Layer& layer : layers_) {
      for (const auto* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) look(**linear);
    }
    look(*head_);
    const auto grow = [&](Quantized& to, size_t tokens) {
      to.values.get(tokens * inputs);
      to.bytes.get(tokens * inputs / 4 + 1);
      to.scales.get(tokens * (inputs / kGroup + 1));
      to.offsets.get(tokens * (inputs / kGroup + 1));
      to.low.get(tokens * rank);
    };
    grow(shared_[0], tokens_);
    for (int id = 0; id < team_.size(); ++id) {
      grow(own_[id], kAlone);
      scratch_[id].get(static_cast<size_t>(kMaxQueries) * widest_ * kLanes);
      queries_[id].get(static_cast<size_t>(kMaxQueries) * shape_.head_dim * 2);
    }
  }

  void embed(int id) {
    for (int m = id; m < tokens_; m += team_.size()) {
      float* to = x_ + static_cast<size_t>(m) * shape_.hidden;
      const int64_t at = ids_[m] * shape_.hidden;
      if (embedding_.scalar_type() == at::kFloat) {
        std::memcpy(to, embedding_.data_ptr<float>() + at, sizeof(float) * shape_.hidden);
      } else {
        const at::Half* from = embedding_.data_ptr<at::Half>() + at;
        for (int i = 0; i < shape_.hidden; ++i) to[i] = from[i];
      }
    }
  }

  // ---- linear layers ---------------------------------------------------------------------------

  // Norms (if given) and quantises what `linear` reads. Few tokens: by every thread for itself.
  const Activations& prepare(const Linear& linear, const float* from, int stride, const Norm* norm,
                             int tokens, const int64_t* adapters, int id) {
    const bool alone = tokens <= kAlone;
    Quantized& to = alone ? own_[id] : shared_[0];
    const int inputs = linear.inputs(), padded = linear.data.inputs;
    if (alone || id == 0) allocate(to, linear, tokens, adapters);
    if (!alone) team_.barrier();
    float* values = to.values.data.get();
    const int step = alone ? 1 : team_.size();
    for (int m = alone ? 0 : id; m < tokens; m += step) {
      const float* x = from + static_cast<size_t>(m) * stride;
      float* kept = values + static_cast<size_t>(m) * inputs;
      if (norm != nullptr) {
        kernels_->rms_norm(x, norm->of(adapters == nullptr ? -1 : adapters[m]), shape_.eps, inputs, kept);
      } else {
        std::memcpy(kept, x, sizeof(float) * inputs);
      }
      if (linear.int8()) {
        const size_t groups = padded / kGroup;
        kernels_->quantize(kept, inputs, padded,
                           reinterpret_cast<int8_t*>(to.bytes.data.get()) + static_cast<size_t>(m) * padded,
                           to.scales.data.get() + m * groups,
                           reinterpret_cast<int32_t*>(to.offsets.data.get()) + m * groups);
      }
      if (to.view.adapters != nullptr && to.adapter_of[m] != nullptr) {
        kernels_->dots(to.adapter_of[m]->down, kept, to.adapter_of[m]->rank, inputs,
                       const_cast<float*>(to.low_of[m]));
      }
    }
    if (!alone) team_.barrier();
    return to.view;
  }

  void allocate(Quantized& to, const Linear& linear, int tokens, const int64_t* adapters) {
    const size_t padded = linear.data.inputs, groups = padded / kGroup;
    to.view = Activations();
    to.view.values = to.values.get(static_cast<size_t>(tokens) * linear.inputs());
    if (linear.int8()) {
      to.view.quantized = reinterpret_cast<int8_t*>(to.bytes.get((tokens * padded + 3) / 4));
      to.view.scales = to.scales.get(tokens * groups);
      to.view.offsets = reinterpret_cast<int32_t*>(to.offsets.get(tokens * groups));
    }
    int rank = 0;
    for (const AdapterData& adapter : linear.adapters) rank = std::max(rank, adapter.rank);
    if (rank == 0 || adapters == nullptr) return;
    float* low = to.low.get(static_cast<size_t>(tokens) * rank);
    to.low_of.assign(tokens, nullptr);
    to.adapter_of.assign(tokens, nullptr);
    for (int m = 0; m < tokens; ++m) {
      const int64_t index = adapters[m];
      if (index < 0 || index >= static_cast<int64_t>(linear.adapters.size())) continue;
      if (linear.adapters[index].rank == 0) continue;
      to.adapter_of[m] = &linear.adapters[index];
      to.low_of[m] = low + static_cast<size_t>(m) * rank;
    }
    to.view.low = to.low_of.data();
    to.view.adapters = to.adapter_of.data();
  }

  // Few tokens: each thread has its part of the outputs, the first of which it fetches while it
  // computes the last of the layer before. Many: parts as threads become free.
  void multiply(const Linear& linear, const Activations& in, int tokens, Epilogue epilogue,
                float* out, int stride, int phase, const Linear* next, int id) {
    const int pairs = linear.data.outputs / (2 * kLanes);
    if (few_) {
      const int first = share(pairs, id), last = share(pairs, id + 1);
      const void* after = next == nullptr ? nullptr : next->pair(share(next->pairs(), id));
      if (last > first) {
        kernels_->linear(linear.data, in, tokens, first, last - first, epilogue, out, stride, after);
      }
    } else {
      const int chunk = std::max(1, pairs / (team_.size() * 8));
      for (int first = take(phase, chunk); first < pairs; first = take(phase, chunk)) {
        kernels_->linear(linear.data, in, tokens, first, std::min(chunk, pairs - first), epilogue,
                         out, stride, nullptr);
      }
    }
    team_.barrier();
  }

  int share(int count, int id) const { return count * id / team_.size(); }

  int take(int phase, int count) {
    return counters_[phase].fetch_add(count, std::memory_order_relaxed);
  }

  void mlp(size_t index, int id) {
    const Layer& layer = layers_[index];
    const int phase = static_cast<int>(index) * 7 + 5;
    const int width = layer.gate_up->data.outputs / 2;
    const Activations& in =
        prepare(*layer.gate_up, x_, shape_.hidden, &layer.mlp_norm, tokens_, adapters_, id);
    multiply(*layer.gate_up, in, tokens_, Epilogue::kSiluMul, mlp_, width, phase, layer.down.get(), id);
    const Activations& act = prepare(*layer.down, mlp_, width, nullptr, tokens_, adapters_, id);
    const Linear* next = index + 1 < layers_.size() ? layers_[index + 1].qkv.get() : head_.get();
    multiply(*layer.down, act, tokens_, Epilogue::kAdd, x_, shape_.hidden, phase + 1, next, id);
  }

  void finish(const Tensor& wanted, Tensor& hidden, Tensor& logits, bool with_logits, int id) {
    const int count = static_cast<int>(wanted.size(0));
    const int64_t* token = wanted.data_ptr<int64_t>();
    float* to = hidden.data_ptr<float>();
    for (int i = id; i < count; i += team_.size()) {
      kernels_->rms_norm(x_ + token[i] * shape_.hidden,
                         final_norm_.of(static_cast<int>(adapters_[token[i]])), shape_.eps,
                         shape_.hidden, to + static_cast<size_t>(i) * shape_.hidden);
    }
    team_.barrier();
    if (!with_logits || count == 0) return;
    if (id == 0) few_ = count <= kFew;
    team_.barrier();
    const Activations& in = prepare(*head_, to, shape_.hidden, nullptr, count, nullptr, id);
    multiply(*head_, in, count, Epilogue::kStore, logits.data_ptr<float>(), head_->data.outputs,
             static_cast<int>(layers_.size()) * 7, layers_[0].qkv.get(), id);
  }

  // ---- attention -------------------------------------------------------------------------------

  // The items of a step, the same in all layers whose heads have the same budgets.
  struct Plan {
    std::vector<Item> items;
    std::vector<int> parts;        // (row, head): how many items
    std::vector<int> key_parts;    // (row, head): how many of them share a query's keys
    std::vector<size_t> first;     // (row, head): its first item
    std::vector<size_t> part_at;   // (row, head): its first item's place in the scratch of parts
    std::vector<size_t> probs_at;  // (item): probabilities that a second item must rescale
  };

  int held(const Plane& plane, int row) const {
    return static_cast<int>(held_[static_cast<size_t>(plane.budget_index) * num_rows_ + row]);
  }

  void plan() {
    size_t parts = 0, probs = 0;
    widest_ = 1;
    for (const Layer& layer : layers_) {
      std::vector<int> key;
      for (const auto& [plane, head] : layer.head) key.push_back(layer.planes[plane].budget_index);
      size_t at = 0;
      while (at < plans_.size() && plans_[at].first != key) ++at;
      if (at == plans_.size()) plans_.emplace_back(key, make_plan(layer, &parts, &probs, &widest_));
      plan_of_.push_back(at);
    }
    parts_ = parts_buffer_.get(parts);
    probs_ = probs_buffer_.get(probs);
  }

  Plan make_plan(const Layer& layer, size_t* parts, size_t* probs, int* widest) const {
    Plan plan;
    size_t part_size = 0, probs_size = 0;
    for (int b = 0; b < num_rows_; ++b) {
      for (int g = 0; g < shape_.kv_heads; ++g) {
        const Plane& plane = layer.planes[layer.head[g].first];
        const int keys = held(plane, b) + rows_[b].tokens;
        const int tiles = round_up(keys, kLanes) / kLanes;
        *widest = std::max(*widest, tiles);
        const size_t first = plan.items.size();
        plan.first.push_back(first);
        plan.key_parts.push_back(decodes(rows_[b]) ? split_keys(plan, b, g, tiles)
                                                   : split_queries(plan, b, g, tiles));
        const int count = static_cast<int>(plan.items.size() - first);
        plan.parts.push_back(count);
        plan.part_at.push_back(part_size);
        part_size += static_cast<size_t>(count) * part_floats(rows_[b], tiles);
        for (int i = 0; i < count; ++i) {
          const Item& item = plan.items[first + i];
          plan.probs_at.push_back(probs_size);
          if (plan.key_parts.back() > 1) {
            probs_size += static_cast<size_t>(item.tokens) * shape_.group() * kLanes *
                          (item.last_tile - item.first_tile);
          }
        }
      }
    }
    *parts = std::max(*parts, part_size);
    *probs = std::max(*probs, probs_size);
    return plan;
  }

  // Guesses attend as decoded tokens do, to the last bit; a prompt's attend in larger blocks.
  static bool decodes(const Row& row) { return row.tokens == 1 || row.draft >= 0; }

  // A decoding row: its keys in parts that depend on their number alone, so that a token comes out
  // the same whoever shares the step. Guesses go in blocks, in two if threads would idle.
  int split_keys(Plan& plan, int row, int head, int tiles) const {
    const int parts = (tiles + kPartTiles - 1) / kPartTiles, tokens = rows_[row].tokens;
    const int most = block(), idle = num_rows_ * shape_.kv_heads * parts < 4 * team_.size();
    const int blocks = std::max((tokens + most - 1) / most, idle && tokens >= 4 ? 2 : 1);
    int index = 0;
    for (int part = 0; part < parts; ++part) {
      const int first_tile = part * kPartTiles, last_tile = std::min(tiles, first_tile + kPartTiles);
      for (int b = 0; b < blocks; ++b, ++index) {
        const int first = tokens * b / blocks, last = tokens * (b + 1) / blocks;
        plan.items.push_back({row, head, first, last - first, first_tile, last_tile, index});
      }
    }
    return parts;
  }

  // A prefilling row: its queries in blocks.
  int split_queries(Plan& plan, int row, int head, int tiles) const {
    int part = 0;
    for (int first = 0; first < rows_[row].tokens; first += block(), ++part) {
      const int count = std::min(block(), rows_[row].tokens - first);
      plan.items.push_back({row, head, first, count, 0, tiles, part});
    }
    return 1;
  }

  int block() const { return std::max(1, kMaxQueries / shape_.group()); }

  // What an item leaves for the merge: decode: max, sum and output of each query head; prefill: mass.
  size_t part_floats(const Row& row, int tiles) const {
    if (!decodes(row)) return static_cast<size_t>(tiles) * kLanes;
    return static_cast<size_t>(std::min(row.tokens, block())) * shape_.group() *
           (shape_.head_dim + 2 * kLanes);
  }

  void attention(size_t index, int id) {
    const Layer& layer = layers_[index];
    const int phase = static_cast<int>(index) * 7;
    const int stride = layer.qkv->data.outputs;
    const Activations& in =
        prepare(*layer.qkv, x_, shape_.hidden, &layer.attention_norm, tokens_, adapters_, id);
    multiply(*layer.qkv, in, tokens_, Epilogue::kStore, qkv_, stride, phase, layer.out.get(), id);
    const Plan& plan = plans_[plan_of_[index]].second;
    const int heads = num_rows_ * shape_.kv_heads;
    for (int at = take(phase + 1, 1); at < heads; at = take(phase + 1, 1)) {
      append(layer, at / shape_.kv_heads, at % shape_.kv_heads, stride);
    }
    if (few_) fetch_keys(layer, plan, id);
    team_.barrier();
    const int items = static_cast<int>(plan.items.size());
    for (int at = take(phase + 2, 1); at < items; at = take(phase + 2, 1)) {
      attend(layer, plan, at, stride, id);
    }
    team_.barrier();
    for (int at = take(phase + 3, 1); at < heads; at = take(phase + 3, 1)) {
      merge(layer, plan, at);
    }
    team_.barrier();
    const Activations& out =
        prepare(*layer.out, attended_, shape_.attention(), nullptr, tokens_, adapters_, id);
    multiply(*layer.out, out, tokens_, Epilogue::kAdd, x_, shape_.hidden, phase + 4,
             layer.gate_up.get(), id);
  }

  // Rotates a row's queries and keys of one KV head, and writes its keys and values.
  void append(const Layer& layer, int b, int g, int stride) {
    const Row& row = rows_[b];
    const Plane& plane = layer.planes[layer.head[g].first];
    const int head = layer.head[g].second, dim = shape_.head_dim, half = dim / 2;
    const KvView kv = plane.view(row.slot, head);
    const int held_before = held(plane, b);
    float* mass = plane.mass_of(row.slot, head);
    int64_t* positions = plane.positions_of(row.slot, head);
    for (int t = 0; t < row.tokens; ++t) {
      const int m = row.first + t, place = held_before + t;
      float* token = qkv_ + static_cast<size_t>(m) * stride;
      const float* cos = cos_.data_ptr<float>() + position_of_[m] * half;
      const float* sin = sin_.data_ptr<float>() + position_of_[m] * half;
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
      positions[place] = position_of_[m];
    }
  }

  // Streams are fetched ahead once they run; their beginnings are asked for here, before they do.
  static void fetch(const void* from, size_t bytes) {
    const char* line = static_cast<const char*>(from);
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
  }

  void fetch_keys(const Layer& layer, const Plan& plan, int at) const {
    if (at >= static_cast<int>(plan.items.size())) return;
    const Item& item = plan.items[at];
    const Plane& plane = layer.planes[layer.head[item.head].first];
    const KvView kv = plane.view(rows_[item.row].slot, layer.head[item.head].second);
    const size_t tile = static_cast<size_t>(shape_.head_dim) * kLanes * plane.keys.element_size();
    fetch(static_cast<const char*>(kv.keys) + item.first_tile * tile, 2 * kFetched);
  }

  void attend(const Layer& layer, const Plan& plan, int at, int stride, int id) {
    const Item& item = plan.items[at];
    const Row& row = rows_[item.row];
    if (decodes(row)) {
      decode(layer, plan, at, stride, id);
    } else {
      prefill(layer, plan, at, stride, id);
    }
  }

  void decode(const Layer& layer, const Plan& plan, int at, int stride, int id) {
    const Item& item = plan.items[at];
    const Row& row = rows_[item.row];
    const Plane& plane = layer.planes[layer.head[item.head].first];
    const int dim = shape_.head_dim, group = shape_.group(), rows = item.tokens * group;
    const int pair = item.row * shape_.kv_heads + item.head, before = held(plane, item.row);
    const int first = item.first_tile * kLanes;
    const int last = std::min(item.last_tile * kLanes, before + item.first_token + item.tokens);
    const int width = (item.last_tile - item.first_tile) * kLanes;
    const bool alone = plan.key_parts[pair] == 1;
    float* probs = alone ? scratch_[id].get(static_cast<size_t>(rows) * width)
                         : probs_ + plan.probs_at[at];
    // Rows of probabilities are indexed by key: shift them so that key `first` lies at their start.
    float* shifted = probs - first;
    const KvView kv = plane.view(row.slot, layer.head[item.head].second);
    const size_t value_bytes = static_cast<size_t>(dim) * plane.values.element_size();
    fetch(static_cast<const char*>(kv.values) + first * value_bytes, kFetched);
    if (row.draft < 0) {
      fetch(plane.mass_of(row.slot, layer.head[item.head].second) + first, sizeof(float) * (last - first));
    }
    float* gathered = queries_[id].get(static_cast<size_t>(kMaxQueries) * dim * 2);
    const float* query = queries(item, stride, gathered);
    kernels_->logits(plane.type, kv, query, rows, dim, item.first_tile, item.last_tile, shifted, width);
    fetch_keys(layer, plan, at + team_.size());
    float max[kMaxQueries], sum[kMaxQueries], factor[kMaxQueries];
    for (int r = 0; r < rows; ++r) {
      float* line = probs + static_cast<size_t>(r) * width;
      const int seen = std::min(width, before + item.first_token + r / group + 1 - first);
      if (seen > 0) {
        sum[r] = kernels_->exponentials(line, seen, width, &max[r]);
      } else {  // a guess whose keys end before this part
        std::fill(line, line + width, 0.0f);
        max[r] = -std::numeric_limits<float>::infinity();
        sum[r] = 0;
      }
      factor[r] = 1.0f / sum[r];
    }
    float* out = item.tokens == 1 ? attended(item, 0) : gathered + static_cast<size_t>(kMaxQueries) * dim;
    if (!alone) {
      float* part = parts_ + plan.part_at[pair] +
                    static_cast<size_t>(item.part) * part_floats(row, item.last_tile);
      std::memcpy(part, max, sizeof(float) * rows);
      std::memcpy(part + rows, sum, sizeof(float) * rows);
      out = part + 2 * kLanes * rows;
    } else {
      for (int t = 0; t < item.tokens; ++t) {
        add_mass(layer, item, t, shifted + static_cast<size_t>(t) * group * width, factor + t * group,
                 width, first, std::min(last, before + item.first_token + t + 1));
      }
    }
    values(plane, kv, shifted, rows, first, last, width, out, alone, id);
    if (!alone) return;
    scale(out, factor, rows);
    if (item.tokens > 1) scatter(item, out);
  }

  float* attended(const Item& item, int token) {
    const size_t at = rows_[item.row].first + item.first_token + token;
    return attended_ + at * shape_.attention() +
           static_cast<size_t>(item.head) * shape_.group() * shape_.head_dim;
  }

  // An item's queries (tokens, group, D), side by side; one token's are as they lie.
  const float* queries(const Item& item, int stride, float* gathered) const {
    const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
    const float* token = qkv_ + item.head * size +
                         static_cast<size_t>(rows_[item.row].first + item.first_token) * stride;
    if (item.tokens == 1) return token;
    for (int t = 0; t < item.tokens; ++t, token += stride) {
      std::memcpy(gathered + t * size, token, sizeof(float) * size);
    }
    return gathered;
  }

  void scatter(const Item& item, const float* out) {
    const size_t size = static_cast<size_t>(shape_.group()) * shape_.head_dim;
    for (int t = 0; t < item.tokens; ++t) {
      std::memcpy(attended(item, t), out + t * size, sizeof(float) * size);
    }
  }

  // A decoded token's share of the mass of keys [first, last): added at once, or if the token is a
  // guess laid aside, unweighted, so that settling rounds as adding does.
  void add_mass(const Layer& layer, const Item& item, int token, const float* probs,
                const float* factor, int width, int first, int last) {
    const Row& row = rows_[item.row];
    const int t = item.first_token + token;
    float weight = weights_[row.first + t];
    if (weight == 0 || last <= first) return;
    float* mass;
    if (row.draft >= 0) {
      const size_t index = &layer - layers_.data();
      const Draft& draft = drafts_[(index * drafted_rows_ + row.draft) * shape_.kv_heads + item.head];
      mass = draft_mass_ + draft.at + static_cast<size_t>(t) * draft.width;
      std::fill(mass + first, mass + last, 0.0f);
      weight = 1.0f;
    } else {
      const auto& [plane, head] = layer.head[item.head];
      mass = layer.planes[plane].mass_of(row.slot, head);
    }
    kernels_->add_mass(probs, factor, shape_.group(), width, first, last, weight, row.max, mass);
  }

  // int8 values scale their probabilities, which a merge still needs: then on a copy.
  void values(const Plane& plane, const KvView& kv, float* probs, int rows, int first, int last,
              int width, float* out, bool disposable, int id) {
    if (plane.type == KvType::kInt8 && !disposable) {
      float* copy = scratch_[id].get(static_cast<size_t>(rows) * width);
      std::memcpy(copy, probs + first, sizeof(float) * rows * width);
      probs = copy - first;
    }
    kernels_->weighted_values(plane.type, kv, probs, rows, shape_.head_dim, first, last, width, out);
  }

  void scale(float* out, const float* factor, int rows) const {
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < shape_.head_dim; ++d) out[r * shape_.head_dim + d] *= factor[r];
    }
  }

  void prefill(const Layer& layer, const Plan& plan, int at, int stride, int id) {
    const Item& item = plan.items[at];
    const Row& row = rows_[item.row];
    const Plane& plane = layer.planes[layer.head[item.head].first];
    const int head = layer.head[item.head].second, dim = shape_.head_dim, group = shape_.group();
    const int rows = item.tokens * group, before = held(plane, item.row);
    const int keys = before + item.first_token + item.tokens;  // the last query's
    const int tiles = round_up(keys, kLanes) / kLanes, width = tiles * kLanes;
    float* gathered = queries_[id].get(static_cast<size_t>(kMaxQueries) * dim * 2);
    float* out = gathered + static_cast<size_t>(kMaxQueries) * dim;
    const float* query = queries(item, stride, gathered);
    float* probs = scratch_[id].get(static_cast<size_t>(rows) * width);
    const KvView kv = plane.view(row.slot, head);
    kernels_->logits(plane.type, kv, query, rows, dim, 0, tiles, probs, width);
    float max, factor[kMaxQueries];
    float* mass = parts_ + plan.part_at[item.row * shape_.kv_heads + item.head] +
                  static_cast<size_t>(item.part) * part_floats(row, item.last_tile);
    std::fill(mass, mass + item.last_tile * kLanes, 0.0f);
    for (int t = 0; t < item.tokens; ++t) {
      const int seen = before + item.first_token + t + 1;
      for (int r = 0; r < group; ++r) {
        float* line = probs + static_cast<size_t>(t * group + r) * width;
        factor[t * group + r] = 1.0f / kernels_->exponentials(line, seen, width, &max);
      }
      const float weight = weights_[row.first + item.first_token + t];
      if (weight != 0) {
        kernels_->add_mass(probs + static_cast<size_t>(t) * group * width, factor + t * group, group,
                           width, 0, seen, weight, row.max, mass);
      }
    }
    values(plane, kv, probs, rows, 0, keys, width, out, true, id);
    scale(out, factor, rows);
    scatter(item, out);
  }

  // Puts the parts of a row and KV head together: the output of split keys, the mass of all.
  void merge(const Layer& layer, const Plan& plan, int pair) {
    const int b = pair / shape_.kv_heads, g = pair % shape_.kv_heads;
    const Row& row = rows_[b];
    const Plane& plane = layer.planes[layer.head[g].first];
    const int keys = held(plane, b) + row.tokens;
    if (decodes(row)) {
      if (plan.key_parts[pair] == 1) return;
      const int blocks = plan.parts[pair] / plan.key_parts[pair];
      for (int block = 0; block < blocks; ++block) merge_keys(layer, plan, pair, block, keys - row.tokens);
      return;
    }
    float* mass = plane.mass_of(row.slot, layer.head[g].second);
    const float* parts = parts_ + plan.part_at[pair];
    const size_t size = part_floats(row, round_up(keys, kLanes) / kLanes);
    for (int part = 0; part < plan.parts[pair]; ++part) {
      for (int s = 0; s < keys; ++s) mass[s] += parts[part * size + s];
    }
  }

  // A block of tokens whose keys were read in parts.
  void merge_keys(const Layer& layer, const Plan& plan, int pair, int block, int before) {
    const int group = shape_.group(), dim = shape_.head_dim, count = plan.key_parts[pair];
    const int blocks = plan.parts[pair] / count;
    const size_t size = part_floats(rows_[pair / shape_.kv_heads], 0);
    const float* parts = parts_ + plan.part_at[pair] + block * size;
    const size_t step = blocks * size, first_item = plan.first[pair] + block;
    const Item& all = plan.items[first_item];
    const int rows = all.tokens * group;
    float max[kMaxQueries], sum[kMaxQueries], factor[kMaxQueries];
    for (int r = 0; r < rows; ++r) {
      max[r] = parts[r];
      for (int p = 1; p < count; ++p) max[r] = std::max(max[r], parts[p * step + r]);
      sum[r] = 0;
      for (int p = 0; p < count; ++p) {
        sum[r] += parts[p * step + rows + r] * std::exp(parts[p * step + r] - max[r]);
      }
      float* out = attended(all, r / group) + (r % group) * dim;
      std::fill(out, out + dim, 0.0f);
    }
    for (int p = 0; p < count; ++p) {
      const float* part = parts + p * step;
      const Item& item = plan.items[first_item + static_cast<size_t>(p) * blocks];
      const int first = item.first_tile * kLanes, width = (item.last_tile - item.first_tile) * kLanes;
      const float* probs = probs_ + plan.probs_at[first_item + static_cast<size_t>(p) * blocks] - first;
      for (int r = 0; r < rows; ++r) {
        factor[r] = std::exp(part[r] - max[r]) / sum[r];
        float* out = attended(all, r / group) + (r % group) * dim;
        for (int d = 0; d < dim; ++d) out[d] += factor[r] * part[2 * kLanes * rows + r * dim + d];
      }
      for (int t = 0; t < item.tokens; ++t) {
        add_mass(layer, item, t, probs + static_cast<size_t>(t) * group * width, factor + t * group, width,
                 first, std::min(first + width, before + item.first_token + t + 1));
      }
    }
  }

  // ---- compaction ------------------------------------------------------------------------------

  void move(Plane& plane, int64_t slot, int head, int from, int to) const {
    if (from == to) return;
    const int dim = shape_.head_dim;
    const KvView kv = plane.view(static_cast<int>(slot), head);
    if (plane.type == KvType::kFloat) {
      move_entry<float>(kv, dim, from, to);
    } else if (plane.type == KvType::kHalf) {
      move_entry<uint16_t>(kv, dim, from, to);
    } else {
      move_entry<int8_t>(kv, dim, from, to);
      const_cast<float*>(kv.key_scales)[to] = kv.key_scales[from];
      const_cast<float*>(kv.value_scales)[to] = kv.value_scales[from];
    }
    float* mass = plane.mass_of(static_cast<int>(slot), head);
    int64_t* positions = plane.positions_of(static_cast<int>(slot), head);
    mass[to] = mass[from];
    positions[to] = positions[from];
  }

  template <class T>
  static void move_entry(const KvView& kv, int dim, int from, int to) {
    T* keys = static_cast<T*>(const_cast<void*>(kv.keys));
    T* values = static_cast<T*>(const_cast<void*>(kv.values));
    const T* source = keys + static_cast<size_t>(from / kLanes) * dim * kLanes + from % kLanes;
    T* target = keys + static_cast<size_t>(to / kLanes) * dim * kLanes + to % kLanes;
    for (int d = 0; d < dim; ++d) target[d * kLanes] = source[d * kLanes];
    std::memcpy(values + static_cast<size_t>(to) * dim, values + static_cast<size_t>(from) * dim,
                sizeof(T) * dim);
  }

  static constexpr size_t kFetched = 4096;  // bytes of a stream before it fetches for itself
  static constexpr int kPartTiles = 512 / kLanes;  // keys that one thread reads for a decoded token
  static constexpr int kAlone = 4;  // tokens that each thread quantises for itself
  static constexpr int kFew = 8;  // tokens of a step that is bound by reading weights

  const Shape shape_;
  const Kernels* kernels_;
  Team team_;
  std::vector<Layer> layers_;
  Tensor embedding_, cos_, sin_;
  Norm final_norm_;
  c10::intrusive_ptr<Linear> head_;

  // Of the step under way.
  int tokens_ = 0, num_rows_ = 0;
  int widest_ = 1;  // tiles of the slot that is read furthest
  bool few_ = false;
  const int64_t* ids_ = nullptr;
  const int64_t* adapters_ = nullptr;
  const int64_t* held_ = nullptr;
  std::vector<float> weights_;
  std::vector<Row> rows_;
  std::vector<Draft> drafts_;  // (layer, row of guesses, KV head)
  int drafted_rows_ = 0;
  float* draft_mass_ = nullptr;
  std::vector<int64_t> position_of_;
  std::vector<std::pair<std::vector<int>, Plan>> plans_;
  std::vector<size_t> plan_of_;
  std::vector<std::atomic<int>> counters_;
  float *x_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr, *mlp_ = nullptr;
  float *parts_ = nullptr, *probs_ = nullptr;

  Tensor logits_;
  Buffer hidden_, qkv_buffer_, attended_buffer_, mlp_buffer_, parts_buffer_, probs_buffer_,
      draft_buffer_;
  std::vector<Quantized> shared_;
  std::vector<Quantized> own_;
  std::vector<Buffer> scratch_, queries_;
};

// Asks for huge pages: fewer address translations where whole slots are read at every step.
void advise_huge_pages(const Tensor& tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes()) & ~(kPage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace llamahome

TORCH_LIBRARY(llamahome, library) {
  using llamahome::Linear;
  using llamahome::Model;
  library.class_<Linear>("Linear")
      .def(torch::init<at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>, int64_t>())
      .def("set_adapter", &Linear::set_adapter);
  library.class_<Model>("Model")
      .def(torch::init<std::vector<int64_t>, double, double, int64_t, std::string>())
      .def("isa", &Model::isa)
      .def("threads", &Model::threads)
      .def("set_ends", &Model::set_ends)
      .def("set_rotary", &Model::set_rotary)
      .def("add_layer", &Model::add_layer)
      .def("set_adapter_norm", &Model::set_adapter_norm)
      .def("add_plane", &Model::add_plane)
      .def("forward", &Model::forward)
      .def("settle", &Model::settle)
      .def("compact", &Model::compact);
  library.def("advise_huge_pages(Tensor tensor) -> ()", &llamahome::advise_huge_pages);
}
