#include "model.h"

#include <cstring>
#include <stdexcept>

namespace llamahome {
namespace {

const Kernels* choose_kernels(const std::string& isa) {
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), portable_kernels()}) {
    if (kernels != nullptr && (isa == "auto" || isa == kernels->name)) return kernels;
  }
  throw std::runtime_error("isa='" + isa + "' does not run on this machine; use 'auto'");
}

}  // namespace

Model::Model(const Shape& shape, int threads, const std::string& isa)
    : shape_(shape),
      kernels_(choose_kernels(isa)),
      team_(threads),
      linear_(kernels_, team_, shape.eps),
      attention_(kernels_, team_, shape) {
  if (shape.head_dim % kLanes != 0 || shape.group() > kMaxQueries) {
    throw std::runtime_error("head_dim must be a multiple of 16, a group at most " +
                             std::to_string(kMaxQueries) + " heads");
  }
}

void Model::add_layer(const Layer& layer) {
  layers_.push_back(layer);
  planes_.emplace_back();
  planes_.back().head.resize(shape_.kv_heads);
}

void Model::set_ends(const Embedding& embedding, const float* norm, const Linear* head) {
  embedding_ = embedding;
  final_norm_.weights = {norm};
  head_ = head;
}

void Model::set_adapter_norm(int64_t layer, bool mlp, int64_t adapter, const float* weight) {
  Norm& norm = layer < 0 ? final_norm_
               : mlp     ? layers_.at(layer).mlp_norm
                         : layers_.at(layer).attention_norm;
  const size_t index = static_cast<size_t>(adapter) + 1;
  if (norm.weights.size() <= index) norm.weights.resize(index + 1, nullptr);
  norm.weights[index] = weight;
}

void Model::forward(const StepInput& input, const int64_t* wanted, int count, float* hidden,
                    float* logits) {
  begin(input);
  const std::function<void(int)> task = [&](int id) {
    embed(id);
    team_.barrier();
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      attend(layer, id);
      mlp(layer, id);
    }
    finish(wanted, count, hidden, logits, id);
  };
  team_.run(task);
}

void Model::begin(const StepInput& input) {
  read_rows(input);
  const size_t tokens = input.tokens;
  step_.x = x_.get(tokens * shape_.hidden);
  step_.qkv = qkv_.get(tokens * layers_[0].qkv->data.outputs);
  step_.attended = attended_.get(tokens * shape_.attention());
  step_.mlp = mlp_.get(tokens * layers_[0].gate_up->data.outputs / 2);
  step_.reset_counters(layers_.size());
  attention_.begin(step_, planes_);
  std::vector<const Linear*> read{head_};
  for (const Layer& layer : layers_) {
    read.insert(read.end(), {layer.qkv, layer.out, layer.gate_up, layer.down});
  }
  linear_.reserve(input.tokens, read);
}

void Model::read_rows(const StepInput& input) {
  step_.tokens = input.tokens;
  step_.ids = input.ids;
  step_.adapters = input.adapters;
  step_.held = input.held;
  step_.mass_weights.assign(input.mass_weights, input.mass_weights + input.tokens);
  step_.rows.clear();
  step_.positions.clear();
  step_.drafted_rows = 0;
  int first = 0;
  for (int b = 0; b < input.rows; ++b) {
    const int64_t* column = input.row_columns + static_cast<int64_t>(b) * kRowColumns;
    const int tokens = static_cast<int>(column[kTokens]);
    const int draft = column[kDrafted] != 0 ? step_.drafted_rows++ : -1;
    step_.rows.push_back({.slot = static_cast<int>(column[kSlot]),
                          .first = first,
                          .tokens = tokens,
                          .max_mass = column[kMaxMass] != 0,
                          .draft = draft});
    for (int t = 0; t < tokens; ++t) step_.positions.push_back(column[kLength] + t);
    first += tokens;
  }
  if (first != input.tokens) {
    throw std::runtime_error("rows have " + std::to_string(first) + " tokens, ids " +
                             std::to_string(input.tokens));
  }
}

void Model::embed(int id) {
  for (int m = id; m < step_.tokens; m += team_.size()) {
    float* to = step_.x + static_cast<size_t>(m) * shape_.hidden;
    const int64_t at = step_.ids[m] * shape_.hidden;
    if (embedding_.floats != nullptr) {
      std::memcpy(to, embedding_.floats + at, sizeof(float) * shape_.hidden);
    } else {
      kernels_->halves(embedding_.halves + at, shape_.hidden, to);
    }
  }
}

void Model::attend(size_t index, int id) {
  const Layer& layer = layers_[index];
  const int stride = layer.qkv->data.outputs;
  linear_.run({layer.qkv, index, kQkv, layer.out},
              input(step_.x, shape_.hidden, &layer.attention_norm),
              {step_.qkv, stride, Epilogue::kStore}, step_, id);
  attention_.run(step_, planes_, index, stride, id);
  linear_.run({layer.out, index, kOut, layer.gate_up},
              input(step_.attended, shape_.attention(), nullptr),
              {step_.x, shape_.hidden, Epilogue::kAdd}, step_, id);
}

void Model::mlp(size_t index, int id) {
  const Layer& layer = layers_[index];
  const int width = layer.gate_up->data.outputs / 2;
  const Linear* next = index + 1 < layers_.size() ? layers_[index + 1].qkv : head_;
  linear_.run({layer.gate_up, index, kGateUp, layer.down},
              input(step_.x, shape_.hidden, &layer.mlp_norm),
              {step_.mlp, width, Epilogue::kSiluMul}, step_, id);
  linear_.run({layer.down, index, kDown, next}, input(step_.mlp, width, nullptr),
              {step_.x, shape_.hidden, Epilogue::kAdd}, step_, id);
}

void Model::finish(const int64_t* wanted, int count, float* hidden, float* logits, int id) {
  for (int i = id; i < count; i += team_.size()) {
    const int adapter = static_cast<int>(step_.adapters[wanted[i]]);
    kernels_->rms_norm(step_.x + wanted[i] * shape_.hidden, final_norm_.of(adapter), shape_.eps,
                       shape_.hidden, hidden + static_cast<size_t>(i) * shape_.hidden);
  }
  team_.barrier();
  if (count == 0) return;
  linear_.run({head_, layers_.size(), kHead, layers_[0].qkv},
              {hidden, shape_.hidden, count, nullptr, nullptr},
              {logits, outputs(), Epilogue::kStore}, step_, id);
}

void Model::accept(int64_t row, int64_t accepted) {
  const Row& drafted = step_.rows.at(row);
  if (drafted.draft < 0 || accepted > drafted.tokens) {
    throw std::runtime_error("row " + std::to_string(row) + " has no " + std::to_string(accepted) +
                             " draft tokens");
  }
  attention_.accept(step_, layers_.size(), drafted, accepted);
}

}  // namespace llamahome
