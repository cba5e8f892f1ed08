// The classes and operators of torch.classes.llamahome and torch.ops.llamahome. They keep tensors
// alive and pass pointers.
#include <ATen/ops/empty.h>
#include <ATen/ops/slice.h>
#include <sys/mman.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <deque>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "model.h"
#include "pack.h"

namespace llamahome {
namespace {

using at::Tensor;

// weight: uint8 (N / 16, K / 64, 16, 16, 4) with scales bfloat16 (N / 16, K / 64, 16), or float32
// (N / 16, K, 16) without; bias (N,) or none.
class LinearBinding : public torch::CustomClassHolder {
 public:
  LinearBinding(Tensor weight, std::optional<Tensor> scales, std::optional<Tensor> bias,
                int64_t inputs) {
    weight = keep(weight.contiguous());
    LinearData& data = linear.data;
    data.outputs = static_cast<int>(weight.size(0)) * kLanes;
    TORCH_CHECK(data.outputs % (2 * kLanes) == 0, "panels come in pairs");
    data.inputs = static_cast<int>(weight.size(1));
    if (scales) {
      TORCH_CHECK(weight.scalar_type() == at::kByte && scales->scalar_type() == at::kBFloat16);
      data.int8_weight = weight.data_ptr<uint8_t>();
      data.scales = reinterpret_cast<const uint16_t*>(keep(*scales).data_ptr());
      data.inputs *= kGroup;
    } else {
      data.float_weight = weight.data_ptr<float>();
    }
    if (bias) data.bias = keep(*bias).data_ptr<float>();
    linear.inputs = static_cast<int>(inputs);
  }

  // down (rank, K), up (N / 16, rank, 16), float32; `index` counts adapters from 0.
  void set_adapter(int64_t index, Tensor down, Tensor up) {
    TORCH_CHECK(down.size(1) == linear.inputs && up.size(0) * kLanes == linear.data.outputs);
    auto& adapters = linear.adapters;
    if (static_cast<int64_t>(adapters.size()) <= index) adapters.resize(index + 1);
    AdapterData& adapter = adapters[index];
    adapter.down = keep(down).data_ptr<float>();
    adapter.up = keep(up).data_ptr<float>();
    adapter.rank = static_cast<int>(down.size(0));
  }

  Linear linear;

 private:
  const Tensor& keep(Tensor tensor) { return kept_.emplace_back(std::move(tensor)); }

  std::deque<Tensor> kept_;
};

using LinearPtr = c10::intrusive_ptr<LinearBinding>;

class ModelBinding : public torch::CustomClassHolder {
 public:
  ModelBinding(int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, double eps,
               double scaling, int64_t threads, std::string isa)
      : model_({.hidden = static_cast<int>(hidden),
                .heads = static_cast<int>(heads),
                .kv_heads = static_cast<int>(kv_heads),
                .head_dim = static_cast<int>(head_dim),
                .eps = static_cast<float>(eps),
                .scaling = static_cast<float>(scaling)},
               static_cast<int>(threads), isa) {}

  std::string isa() const { return model_.isa(); }

  // embedding (V, hidden), float32 or float16.
  void set_ends(Tensor embedding, Tensor norm, LinearPtr head) {
    embedding = keep(embedding.contiguous());
    if (embedding.scalar_type() == at::kFloat) {
      model_.embedding.floats = embedding.data_ptr<float>();
    } else {
      model_.embedding.halves = reinterpret_cast<const uint16_t*>(embedding.data_ptr<at::Half>());
    }
    model_.final_norm.weights = {floats(norm)};
    model_.head = keep(head);
  }

  // cos and sin (positions, D / 2), float32.
  void set_rotary(Tensor cos, Tensor sin) {
    model_.set_rotary(floats(cos.contiguous()), floats(sin.contiguous()));
  }

  void add_layer(Tensor attention_norm, LinearPtr qkv, LinearPtr out, Tensor mlp_norm,
                 LinearPtr gate_up, LinearPtr down) {
    model_.layers.push_back({.attention_norm = {{floats(attention_norm)}},
                             .mlp_norm = {{floats(mlp_norm)}},
                             .qkv = keep(qkv),
                             .out = keep(out),
                             .gate_up = keep(gate_up),
                             .down = keep(down)});
    model_.planes.emplace_back().head.resize(model_.shape().kv_heads);
  }

  // Sets a norm of a layer, or the final one (layer -1): an adapter's, or the model's own (adapter
  // -1), as a layer's norms of queries and keys come.
  void set_norm(int64_t layer, const std::string& name, int64_t adapter, Tensor weight) {
    Norm& norm = norm_of(layer, name);
    const size_t index = static_cast<size_t>(adapter + 1);
    if (norm.weights.size() <= index) norm.weights.resize(index + 1, nullptr);
    norm.weights[index] = floats(weight);
  }

  // keys (slots, G, C / 16, D, 16), values (slots, G, C, D), the other columns (slots, G, C), all
  // float32 but positions; features only where the policy writes them.
  void add_plane(int64_t layer, std::vector<int64_t> heads, int64_t budget_index, Tensor keys,
                 Tensor values, Tensor mass, Tensor positions, std::optional<Tensor> key_scales,
                 std::optional<Tensor> value_scales, std::optional<Tensor> features) {
    LayerPlanes& to = model_.planes.at(layer);
    Plane plane;
    plane.type = keys.scalar_type() == at::kFloat  ? KvType::kFloat
                 : keys.scalar_type() == at::kHalf ? KvType::kHalf
                                                   : KvType::kInt8;
    plane.heads = static_cast<int>(heads.size());
    plane.capacity = static_cast<int>(values.size(2));
    plane.dim = static_cast<int>(values.size(3));
    plane.itemsize = static_cast<int>(values.element_size());
    plane.budget_index = static_cast<int>(budget_index);
    plane.keys = static_cast<char*>(keep(keys).data_ptr());
    plane.values = static_cast<char*>(keep(values).data_ptr());
    plane.mass = floats(mass);
    plane.positions = keep(positions).data_ptr<int64_t>();
    if (plane.type == KvType::kInt8) {
      plane.key_scales = floats(key_scales.value());
      plane.value_scales = floats(value_scales.value());
    }
    if (features) plane.features = floats(*features);
    for (size_t i = 0; i < heads.size(); ++i) {
      to.head.at(heads[i]) = {static_cast<int>(to.planes.size()), static_cast<int>(i)};
    }
    to.planes.push_back(plane);
  }

  // Gives a plane the network that writes its features: keys and values (G, W + 1, D), hidden_bias
  // and out (G, W), bias (G,), as FeatureNetwork says.
  void set_features(int64_t layer, int64_t plane_index, Tensor keys, Tensor values,
                    Tensor hidden_bias, Tensor out, Tensor bias) {
    Plane& plane = model_.planes.at(layer).planes.at(plane_index);
    TORCH_CHECK(plane.features != nullptr && out.size(1) <= FeatureNetwork::kMaxWidth);
    plane.network = {.keys = floats(keys),
                     .values = floats(values),
                     .hidden_bias = floats(hidden_bias),
                     .out = floats(out),
                     .bias = floats(bias),
                     .width = static_cast<int>(out.size(1))};
  }

  // Runs a step. ids (M,); rows (B, kRowColumns); held (budgets, B): entries in the slot before the
  // step; weights (M,) float32: of each token's probabilities in the mass; adapters (M,), -1 for
  // none; wanted (L,): tokens that need an output; all int64 but weights. Returns the final hidden
  // states (L, hidden), after the norm, and the logits (L, V padded).
  std::tuple<Tensor, Tensor> forward(Tensor ids, Tensor rows, Tensor held, Tensor weights,
                                     Tensor adapters, Tensor wanted) {
    TORCH_CHECK(rows.size(1) == kRowColumns, "rows have ", kRowColumns, " columns");
    const StepInput input{.tokens = static_cast<int>(ids.size(0)),
                          .rows = static_cast<int>(rows.size(0)),
                          .ids = ids.data_ptr<int64_t>(),
                          .row_columns = rows.data_ptr<int64_t>(),
                          .held = held.data_ptr<int64_t>(),
                          .adapters = adapters.data_ptr<int64_t>(),
                          .mass_weights = weights.data_ptr<float>()};
    const int64_t count = wanted.size(0);
    Tensor hidden = at::empty({count, model_.shape().hidden}, at::kFloat);
    Tensor logits = logits_for(count);
    model_.forward(input, wanted.data_ptr<int64_t>(), static_cast<int>(count),
                   hidden.data_ptr<float>(), logits.data_ptr<float>());
    return {hidden, logits};
  }

  // Adds the mass of accepted draft tokens after verification; rows (n, kAcceptColumns) int64.
  // Entries of the others are overwritten by the next step.
  void accept(Tensor rows) {
    TORCH_CHECK(rows.size(1) == kAcceptColumns, "rows have ", kAcceptColumns, " columns");
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const int64_t* column = rows.data_ptr<int64_t>() + kAcceptColumns * i;
      model_.accept(column[kRow], column[kAccepted]);
    }
  }

  // Compacts slots (B,) as Plane::Compaction says; scores (B, G, >= count) float64, lengths and
  // sinks (B,) int64.
  void compact(int64_t layer, int64_t plane_index, Tensor slots, Tensor scores, int64_t count,
               int64_t budget, int64_t recent, Tensor lengths, Tensor sinks) {
    TORCH_CHECK(scores.scalar_type() == at::kDouble && scores.stride(2) == 1);
    const Plane::Compaction what{.slots = slots.data_ptr<int64_t>(),
                                 .lengths = lengths.data_ptr<int64_t>(),
                                 .sinks = sinks.data_ptr<int64_t>(),
                                 .scores = scores.data_ptr<double>(),
                                 .row_stride = scores.stride(0),
                                 .head_stride = scores.stride(1),
                                 .rows = static_cast<int>(slots.size(0)),
                                 .count = static_cast<int>(count),
                                 .budget = static_cast<int>(budget),
                                 .recent = static_cast<int>(recent)};
    model_.planes.at(layer).planes.at(plane_index).compact(what, model_.team());
  }

 private:
  Norm& norm_of(int64_t layer, const std::string& name) {
    if (layer < 0) return model_.final_norm;
    Layer& own = model_.layers.at(layer);
    if (name == "attention") return own.attention_norm;
    if (name == "mlp") return own.mlp_norm;
    if (name == "query") return own.head_norms.query;
    TORCH_CHECK(name == "key", "no norm is named ", name);
    return own.head_norms.key;
  }

  // New memory costs page faults at every step, so the last step's is reused unless it is in use.
  Tensor logits_for(int64_t count) {
    if (!logits_.defined() || logits_.size(0) < count || logits_.storage().use_count() > 1) {
      logits_ = at::empty({count, model_.outputs()}, at::kFloat);
    }
    return logits_.slice(0, 0, count);
  }

  const Tensor& keep(Tensor tensor) { return tensors_.emplace_back(std::move(tensor)); }
  float* floats(Tensor tensor) { return keep(std::move(tensor)).data_ptr<float>(); }
  const Linear* keep(LinearPtr linear) { return &linears_.emplace_back(std::move(linear))->linear; }

  std::deque<Tensor> tensors_;
  std::vector<LinearPtr> linears_;
  Tensor logits_;
  Model model_;
};

// Asks for huge pages: fewer address translations where whole slots are read at every step.
void advise_huge_pages(const Tensor& tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t begin = (start + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (start + tensor.nbytes()) & ~(kPage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// weight (N, K) float32, rows (N padded,) int64; writes `packed` and `scales` as LinearBinding
// says.
void quantize_linear(const Tensor& weight, const Tensor& rows, Tensor packed, Tensor scales,
                     int64_t threads) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat && weight.is_contiguous());
  TORCH_CHECK(packed.is_contiguous() && scales.is_contiguous());
  pack_int8(*choose_kernels("auto"),
            {.weight = weight.data_ptr<float>(),
             .rows = rows.data_ptr<int64_t>(),
             .panels = static_cast<int>(scales.size(0)),
             .inputs = static_cast<int>(weight.size(1)),
             .packed = packed.data_ptr<uint8_t>(),
             .scales = reinterpret_cast<uint16_t*>(scales.data_ptr())},
            static_cast<int>(threads));
}

}  // namespace
}  // namespace llamahome

TORCH_LIBRARY(llamahome, library) {
  using llamahome::LinearBinding;
  using llamahome::ModelBinding;
  library.class_<LinearBinding>("Linear")
      .def(torch::init<at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>, int64_t>())
      .def("set_adapter", &LinearBinding::set_adapter);
  library.class_<ModelBinding>("Model")
      .def(torch::init<int64_t, int64_t, int64_t, int64_t, double, double, int64_t, std::string>())
      .def("isa", &ModelBinding::isa)
      .def("set_ends", &ModelBinding::set_ends)
      .def("set_rotary", &ModelBinding::set_rotary)
      .def("add_layer", &ModelBinding::add_layer)
      .def("set_norm", &ModelBinding::set_norm)
      .def("add_plane", &ModelBinding::add_plane)
      .def("set_features", &ModelBinding::set_features)
      .def("forward", &ModelBinding::forward)
      .def("accept", &ModelBinding::accept)
      .def("compact", &ModelBinding::compact);
  library.def(
      "quantize_linear(Tensor weight, Tensor rows, Tensor(a!) packed, Tensor(b!) scales, "
      "int threads) -> ()",
      &llamahome::quantize_linear);
  library.def("advise_huge_pages(Tensor tensor) -> ()", &llamahome::advise_huge_pages);
}
