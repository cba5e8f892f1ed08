"""A model as a GGUF file for llama.cpp, read back by transformers before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llamahome.attention.shape import ModelShape, context_length
from train.errors import ExportError
from train.publish.gguf_preflight import ARCHITECTURES, check_model
from train.publish.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from train.publish.news import bar, say
from train.publish.source import Source
from train.publish.weights import check_gap, log_probs, merged_model

Types = GGMLQuantizationType
QUANTIZATIONS = {
    "f32": (Types.F32, LlamaFileType.ALL_F32),
    "f16": (Types.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Types.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Types.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def check_gguf(source: Source, allow_dense: bool) -> GgufTokenizer:
    """Check what can be checked before weights are read, and return the tokenizer for llama.cpp.

    Raises:
        ExportError: for what would not compute the same in llama.cpp.
    """
    found = source.found
    check_model(found.config, found.policy_config, allow_dense)
    vocabulary = found.config.vocab_size
    return gguf_tokenizer(found.tokenizer(), found.generation_config, vocabulary)


def write_gguf(source: Source, tokenizer: GgufTokenizer, quantization: str, file: Path) -> float:
    """Write the model, adapters merged in float32, as one file; return what rounding costs.

    transformers reads the file back, into the same class, before it counts.

    Returns:
        The mean difference of log-probabilities between the trained and the written model, in nats.

    Raises:
        ExportError: when the file gives other log-probabilities than its rounded weights, or a
            weight does not fit into the format.
    """
    model, _, expected = merged_model(source)
    kind, file_type = QUANTIZATIONS[quantization]
    writer = GGUFWriter(file, ARCHITECTURES[model.config.model_type].name.lower())
    writer.add_name(source.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _write_shape(writer, model.config)
    tokenizer.write(writer)
    _write_weights(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    say(f"wrote {file.name}; reading it back")
    rounded = log_probs(model)  # `_write_weights` has rounded them in place
    _read_back(model, file)
    check_gap(log_probs(model), rounded, torch.float32, "the GGUF file", "the model written to it")
    return float((rounded - expected).abs().mean())


def _write_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    shape = ModelShape.of_config(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


@torch.no_grad()
def _write_weights(writer: GGUFWriter, model: PreTrainedModel, kind: Types) -> None:
    """Add every weight, and leave in `model` the rounded ones."""
    config = model.config
    shape = ModelShape.of_config(config)
    names = get_tensor_name_map(ARCHITECTURES[config.model_type], shape.num_layers)
    heads = {"q_proj": shape.num_heads, "k_proj": shape.num_kv_heads}
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _frequency_factors(model, shape.head_dim))
    for name, parameter in bar(list(model.named_parameters()), f"writing {kind.name}"):
        stored, values = _stored_type(parameter, kind), parameter.float()
        if not values.isfinite().all() or (stored == Types.F16 and values.abs().max() > 65504):
            raise ExportError(
                f"{name} has weights that {stored.name.lower()} cannot hold; use --quantization f32"
            )
        data: NDArray[np.generic] = quantize(values.numpy(), stored)
        parameter.copy_(torch.from_numpy(dequantize(data, stored).reshape(parameter.shape)))
        part = name.split(".")[-2]
        if writer.arch == "llama" and part in heads:
            data = interleave_rotary_halves(data, heads[part])
        translated = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if translated is None:
            raise ExportError(f"{name} has no name in GGUF; use --format merged")
        writer.add_tensor(translated, data, raw_dtype=stored)


def _stored_type(parameter: nn.Parameter, kind: Types) -> Types:
    """Return the type of one weight: vectors stay float32, as llama.cpp adds them in float32."""
    if parameter.dim() == 1:
        return Types.F32
    return kind if parameter.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else Types.F16


def interleave_rotary_halves(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Reorder each head's rows for llama.cpp, which rotates neighbours, not halves."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _frequency_factors(model: PreTrainedModel, head_dim: int) -> NDArray[np.float32]:
    """Return by how much Llama 3's scaling divides each frequency of the rotary embedding."""
    scaled = model.base_model.get_buffer("rotary_emb.inv_freq").float()
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    plain = 1.0 / model.config.rope_parameters["rope_theta"] ** exponents
    factors: NDArray[np.float32] = (plain / scaled).numpy()
    return factors


@torch.no_grad()
def _read_back(model: PreTrainedModel, file: Path) -> None:
    """Load the file's weights into `model`, as transformers reads them."""
    content = load_gguf_checkpoint(file, return_tensors=True, model_to_load=_named_as(model))
    config = content["config"]
    for field in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        if config[field] != getattr(model.config, field):
            raise ExportError(f"the GGUF file has {field}={config[field]}; use --format merged")
    for parameter in model.parameters():
        parameter.fill_(torch.nan)  # so that a weight that is not in the file shows
    model.load_state_dict(content["tensors"], strict=False)


def _named_as(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without weights, of the class as which llama.cpp knows this one."""
    kind = ARCHITECTURES[model.config.model_type].name.lower()
    fields = model.config.to_dict()
    del fields["model_type"]
    config = AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
