"""Conversion of a Hugging Face model, with its adapters, for the C++ kernels."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.attention.shape import ModelShape
from llamahome.native import weights as pack

# Rotary embeddings whose angles depend on the position alone.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
MAX_GROUP = 24  # kMaxQueries of csrc/kernels.h


def unsupported(model: PreTrainedModel, policy: Policy) -> str | None:
    """Return why the kernels cannot compute this model under this policy; None when they can."""
    config = model.config
    if model.device.type != "cpu":
        return f"the model is on {model.device}"
    if config.model_type not in ("llama", "mistral", "qwen2"):
        return f"model_type={config.model_type!r} is not among llama, mistral, qwen2"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"sliding_window={config.sliding_window}"
    if config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act!r} is not silu"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        return f"rope_type={rope!r} depends on the length of the text"
    if policy.rolling:
        return "policy.positions='rolling' rotates keys at every step"
    return _unsupported_shape(model)


def _unsupported_shape(model: PreTrainedModel) -> str | None:
    shape, hidden_size = ModelShape.of(model), model.config.hidden_size
    if shape.head_dim % 16:
        return f"head_dim={shape.head_dim} is no multiple of 16"
    if hidden_size % 32:
        return f"hidden_size={hidden_size} is no multiple of 32"
    group = shape.num_heads // shape.num_kv_heads
    if group > MAX_GROUP:
        return f"{group} query heads share a KV head, more than {MAX_GROUP}"
    return None


@torch.no_grad()
def build_model(
    model: PreTrainedModel,
    adapters: list[str],
    *,
    int8: bool,
    max_length: int,
    threads: int,
    isa: str,
) -> Any:
    """Build a `torch.classes.llamahome.Model` with every weight, layer by layer.

    Args:
        adapters: names of those that PEFT has put into `model`; their order gives the indices.
        max_length: number of positions that keys may be rotated for.
    """
    shape, decoder = ModelShape.of(model), cast(Any, model.base_model)
    native = torch.classes.llamahome.Model(
        model.config.hidden_size,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        model.config.rms_norm_eps,
        decoder.layers[0].self_attn.scaling,
        threads,
        isa,
    )
    arena = pack.Arena()
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        native.add_layer(
            _norm(layer.input_layernorm),
            _linear([attention.q_proj, attention.k_proj, attention.v_proj], adapters, int8, arena),
            _linear([attention.o_proj], adapters, int8, arena),
            _norm(layer.post_attention_layernorm),
            _linear([mlp.gate_proj, mlp.up_proj], adapters, int8, arena, interleave=True),
            _linear([mlp.down_proj], adapters, int8, arena),
        )
    embedding = cast(Any, model.get_input_embeddings()).weight.detach()
    native.set_ends(
        embedding.half() if int8 else embedding.float(),
        _norm(decoder.norm),
        _linear([model.get_output_embeddings()], [], int8, arena),
    )
    cos, sin = decoder.rotary_emb(torch.zeros(1, 1), torch.arange(max_length)[None])
    half = cos.shape[-1] // 2
    native.set_rotary(cos[0, :, :half].float(), sin[0, :, :half].float())
    for index, name in enumerate(adapters):
        _set_norms(native, decoder, index, name)
    return native


def _linear(
    modules: list[Any],
    adapters: list[str],
    int8: bool,
    arena: pack.Arena,
    *,
    interleave: bool = False,
) -> Any:
    """Pack linear layers that have the same input into one, with their adapters."""
    plain = [_plain_linear(module) for module in modules]
    weight = torch.cat([module.weight for module in plain])
    bias: Tensor | None = None
    if any(module.bias is not None for module in plain):
        biases = (torch.zeros(len(m.weight)) if m.bias is None else m.bias for m in plain)
        bias = torch.cat(list(biases))
    packed = pack.linear(weight, bias, int8=int8, interleave=interleave, arena=arena)
    for index, name in enumerate(adapters):
        low_rank = _low_rank(modules, name)
        if low_rank is not None:
            packed.set_adapter(index, *pack.adapter(*low_rank, interleave=interleave))
    return packed


def _plain_linear(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _low_rank(modules: list[Any], name: str) -> tuple[Tensor, Tensor] | None:
    """Return an adapter's down (r, K) and up (N, r) for layers that have the same input."""
    downs, ups = [], []
    for module in modules:
        if isinstance(module, LoraLayer) and name in module.lora_A:
            downs.append(cast(Any, module.lora_A[name]).weight)
            ups.append(cast(Any, module.lora_B[name]).weight * module.scaling[name])
        else:
            ups.append(torch.zeros(_plain_linear(module).weight.shape[0], 0))
    return (torch.cat(downs), torch.block_diag(*ups)) if downs else None


def _norm(module: Any) -> Tensor:
    plain = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
    weight: Tensor = plain.weight
    return weight.detach().float().contiguous()


def _set_norms(native: Any, decoder: Any, index: int, name: str) -> None:
    """Give an adapter the norms that it trained in place of the model's own."""
    places: list[tuple[int, bool, Any]] = [(-1, False, decoder.norm)]
    for i, layer in enumerate(decoder.layers):
        places += [(i, False, layer.input_layernorm), (i, True, layer.post_attention_layernorm)]
    for layer_idx, mlp, module in places:
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            trained = _norm(module.modules_to_save[name])
            native.set_adapter_norm(layer_idx, mlp, index, trained)
