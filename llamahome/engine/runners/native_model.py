"""Conversion of a decoder's weights, with its adapters, for the C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llamahome.attention.rotary import STATIC_ROPE
from llamahome.attention.shape import ModelShape, sliding_window
from llamahome.config import PolicyConfig
from llamahome.models.decoder import FAMILIES, Decoder, rotary_angles
from llamahome.native import weights as pack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_GROUP = 24  # kMaxQueries of csrc/kernels.h
# A layer's norms, as the kernels and as transformers name them; the latter two are in Qwen3 alone.
NORMS = {
    "attention": "input_layernorm",
    "mlp": "post_attention_layernorm",
    "query": "self_attn.q_norm",
    "key": "self_attn.k_norm",
}


def unsupported(config: PreTrainedConfig, policy: PolicyConfig, max_length: int) -> str | None:
    """Return why the kernels cannot compute a model under a policy; None when they can.

    Args:
        max_length: tokens of the longest text.
    """
    if config.model_type not in FAMILIES:
        return f"model_type={config.model_type!r} is not among {', '.join(FAMILIES)}"
    window = sliding_window(config)
    if window is not None and window < max_length:
        return f"sliding_window={window} is shorter than engine.max_length={max_length}"
    if config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act!r} is not silu"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in STATIC_ROPE:
        return f"rope_type={rope['rope_type']!r} depends on the length of the text"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor={rope['partial_rotary_factor']} is not 1"
    if policy.positions == "rolling":
        return "policy.positions='rolling' rotates keys at every step"
    return _unsupported_shape(config)


def _unsupported_shape(config: PreTrainedConfig) -> str | None:
    shape, hidden_size = ModelShape.of_config(config), config.hidden_size
    if shape.head_dim % 16:
        return f"head_dim={shape.head_dim} is no multiple of 16"
    if hidden_size % 32:
        return f"hidden_size={hidden_size} is no multiple of 32"
    group = shape.num_heads // shape.num_kv_heads
    if group > MAX_GROUP:
        return f"{group} query heads share a KV head, more than {MAX_GROUP}"
    return None


@torch.no_grad()
def build_model(model: Decoder, *, int8: bool, max_length: int, threads: int, isa: str) -> Any:
    """Build a `torch.classes.llamahome.Model` with every weight, layer by layer.

    Args:
        model: its adapters' order gives their indices.
        max_length: number of positions that keys may be rotated for.
    """
    config, shape = model.config, ModelShape.of_config(model.config)
    native = torch.classes.llamahome.Model(
        config.hidden_size,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        config.rms_norm_eps,
        shape.head_dim**-0.5,
        threads,
        isa,
    )
    weights = _Weights(model, int8, pack.Arena())
    for index in range(shape.num_layers):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        native.add_layer(
            weights.norm(f"{layer}.{NORMS['attention']}"),
            weights.linear([f"{attention}.{name}_proj" for name in "qkv"]),
            weights.linear([f"{attention}.o_proj"]),
            weights.norm(f"{layer}.{NORMS['mlp']}"),
            weights.linear([f"{mlp}.gate_proj", f"{mlp}.up_proj"], interleave=True),
            weights.linear([f"{mlp}.down_proj"]),
        )
        for name, path in NORMS.items():
            _set_norms(native, model, index, name, f"{layer}.{path}")
    embedding = model.tensors["model.embed_tokens.weight"]
    native.set_ends(
        embedding.half() if int8 else embedding.float(),
        weights.norm("model.norm"),
        weights.linear(["lm_head"]),
    )
    _set_norms(native, model, -1, "final", "model.norm")
    native.set_rotary(*rotary_angles(config, max_length))
    return native


@dataclass(frozen=True)
class _Weights:
    """The tensors of a model, packed by the name of their modules."""

    model: Decoder
    int8: bool
    arena: pack.Arena

    def norm(self, module: str) -> Tensor:
        return self.model.tensors[f"{module}.weight"].float().contiguous()

    def linear(self, modules: Sequence[str], *, interleave: bool = False) -> Any:
        """Pack linear layers that have the same input into one, with their adapters."""
        tensors = self.model.tensors
        own = [tensors[f"{module}.weight"] for module in modules]
        weight = own[0] if len(own) == 1 else torch.cat(own)
        packed = pack.linear(
            weight, self._bias(modules), int8=self.int8, interleave=interleave, arena=self.arena
        )
        for index, name in enumerate(self.model.adapters):
            low_rank = self._low_rank(modules, name)
            if low_rank is not None:
                packed.set_adapter(index, *pack.adapter(*low_rank, interleave=interleave))
        return packed

    def _bias(self, modules: Sequence[str]) -> Tensor | None:
        tensors = self.model.tensors
        if not any(f"{module}.bias" in tensors for module in modules):
            return None
        nothing = (torch.zeros(len(tensors[f"{module}.weight"])) for module in modules)
        biases = zip(modules, nothing, strict=True)
        return torch.cat([tensors.get(f"{module}.bias", zeros) for module, zeros in biases])

    def _low_rank(self, modules: Sequence[str], name: str) -> tuple[Tensor, Tensor] | None:
        """Return an adapter's down (r, K) and up (N, r) for layers that have the same input."""
        pairs = self.model.adapters[name].pairs
        downs = [pairs[module][0] for module in modules if module in pairs]
        ups = [
            pairs[module][1]
            if module in pairs
            else torch.zeros(len(self.model.tensors[f"{module}.weight"]), 0)
            for module in modules
        ]
        return (torch.cat(downs), torch.block_diag(*ups)) if downs else None


def _set_norms(native: Any, model: Decoder, layer: int, name: str, module: str) -> None:
    """Set a layer's norms of queries and keys, and every norm that an adapter trained."""
    own = model.tensors.get(f"{module}.weight")
    if name in ("query", "key") and own is not None:
        native.set_norm(layer, name, -1, own.float().contiguous())
    for index, adapter in enumerate(model.adapters.values()):
        if module in adapter.norms:
            native.set_norm(layer, name, index, adapter.norms[module].float().contiguous())
