"""Hybrid attention over a whole sequence, and its place in transformers.

Time is cut into chunks of `interval` tokens. A query sees what the policy kept of earlier chunks
and, causally, its own chunk.

Axes: B batch, H query heads, G KV heads, N tokens, S keys, D head_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from llamahome.attention.attend import attend
from llamahome.attention.entries import Entries
from llamahome.attention.policy import Policy

NAME = "hybrid"


class Attender(Protocol):
    """What a model's forward is given as `hybrid=`: it does the attention of every layer."""

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attention output (B, H, T, D) of layer `layer_idx`."""
        ...


class HybridAttention:
    """Attention under an eviction policy, chunk by chunk, with gradients: the training forward.

    Pass it to a model as `model(input_ids, use_cache=False, hybrid=HybridAttention(policy))` after
    `attach`. Which keys stay is decided without gradient; what is gathered keeps its own. Batches
    are padded on the right: padded queries come last, so nothing real ever depends on them.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @staticmethod
    def attach(model: PreTrainedModel) -> None:
        """Make `model` compute its attention through the `hybrid=` argument of its forward."""
        model.set_attn_implementation(NAME)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None
    ) -> Tensor:
        """Attention of one layer over a whole sequence.

        Args:
            query: (B, H, N, D), rotated.
            key, value: (B, G, N, D).
            scaling: factor on the logits; D ** -0.5 when None.

        Returns:
            (B, H, N, D), differentiable in all three.
        """
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.attend(0, query, key, value, factor)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        length = query.shape[2]
        if not self.policy.evicts(length):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=True,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        kept = _nothing_yet(key, value, layer_idx)
        outputs = []
        for start in range(0, length, self.policy.interval):
            chunk = slice(start, min(start + self.policy.interval, length))
            held = _append(kept, key[:, :, chunk], value[:, :, chunk], start)
            out, mass = self._attend_chunk(query[:, :, chunk], held, scaling)
            outputs.append(out)
            if chunk.stop < length:
                kept = self._compact(held, mass, chunk.stop)
        return torch.cat(outputs, dim=2)

    def _attend_chunk(
        self, query: Tensor, held: Entries, scaling: float
    ) -> tuple[Tensor, Tensor | None]:
        queries, keys = query.shape[2], held.keys.shape[2]
        visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        visible = visible.tril(diagonal=keys - queries)
        counted = visible.new_ones(queries) if self.policy.needs_mass else None
        return attend(query, held.keys, held.values, visible.unsqueeze(0), scaling, counted=counted)

    def _compact(self, held: Entries, mass: Tensor | None, length: int) -> Entries:
        if mass is not None:
            held = replace(held, mass=held.mass + mass)
        count = held.keys.shape[2]
        if self.policy.kept(count) == count:
            return held
        index = self.policy.select(held, length)
        wide = index.unsqueeze(-1).expand(-1, -1, -1, held.keys.shape[-1])
        return Entries(
            keys=held.keys.gather(2, wide),
            values=held.values.gather(2, wide),
            mass=held.mass.gather(2, index),
            positions=held.positions.gather(2, index),
            layer_idx=held.layer_idx,
        )


def _nothing_yet(key: Tensor, value: Tensor, layer_idx: int) -> Entries:
    wide = torch.promote_types(key.dtype, torch.float32)
    none = key[:, :, :0, 0].detach()
    return Entries(
        keys=key[:, :, :0],
        values=value[:, :, :0],
        mass=none.to(wide),
        positions=none.to(torch.int64),
        layer_idx=layer_idx,
    )


def _append(kept: Entries, key: Tensor, value: Tensor, start: int) -> Entries:
    batch, groups, tokens, _ = key.shape
    positions = torch.arange(start, start + tokens, device=key.device)
    return Entries(
        keys=torch.cat([kept.keys, key], dim=2),
        values=torch.cat([kept.values, value], dim=2),
        mass=F.pad(kept.mass, (0, tokens)),
        positions=torch.cat([kept.positions, positions.expand(batch, groups, -1)], dim=2),
        layer_idx=kept.layer_idx,
    )


def _hybrid_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    hybrid: Attender | None = None,
    **features: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: (B, H, T, D) and friends to (B, T, H, D)."""
    if hybrid is None:
        raise ValueError(
            "this model's attention is 'hybrid': call it with hybrid=HybridAttention(...)"
        )
    if dropout:
        raise ValueError(f"attention dropout {dropout} is not supported; set attention_dropout=0")
    for feature in ("sliding_window", "softcap", "s_aux"):
        if features.get(feature) is not None:
            raise ValueError(
                f"{type(module).__name__} asks for {feature}={features[feature]!r}, which hybrid "
                "attention does not compute; use a model without it"
            )
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    out = hybrid.attend(layer_idx, query, key, value, scaling)
    return out.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """transformers' mask function: none is built, since causality is part of the chunk walk."""
    if attention_mask is not None and not bool(attention_mask[:, 0].all()):
        raise ValueError(
            "attention_mask pads on the left; hybrid attention needs padding on the right "
            "(tokenizer.padding_side='right')"
        )


AttentionInterface.register(NAME, _hybrid_forward)
AttentionMaskInterface.register(NAME, _no_mask)
