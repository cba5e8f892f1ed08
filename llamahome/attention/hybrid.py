"""Hybrid attention over a whole sequence, and its place in transformers.

Time is cut into chunks of `interval` tokens. A query sees the entries that the policy kept from
earlier chunks and, causally, its own chunk.

Axes: B batch, H query heads, G KV heads, N tokens, D head_dim.
"""

from __future__ import annotations

from copy import copy
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from llamahome.attention.documents import Documents
from llamahome.attention.gradients import walk_with_gradients
from llamahome.attention.planes import attend_by_plane
from llamahome.attention.policy import Plane, Policy
from llamahome.attention.rotary import Rotary
from llamahome.attention.shape import ModelShape
from llamahome.attention.walk import Walk

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hybrid"


class Attender(Protocol):
    """Argument `hybrid=` of a model's forward: it computes the attention of every layer."""

    policy: Policy

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Compute the attention output (B, H, T, D) of layer `layer_idx`."""
        ...


class HybridAttention:
    """Attention under an eviction policy, chunk by chunk, with gradients: the training forward.

        attention = HybridAttention(policy, model)
        attention.attach(model)
        model(ids, position_ids=attention.position_ids(ids), use_cache=False, hybrid=attention)

    Selection has no gradient; the keys and values that stay have theirs. Batches are padded on the
    right: padded queries come last, so nothing real ever depends on them.

    Args:
        policy: decides which keys stay.
        model: the one it will attend for, in which patterns, pyramids and rolling positions find
            their layers and frequencies. Other policies do not need it.

    Raises:
        ValueError: for a policy that does not fit the model, or that needs one.
    """

    def __init__(self, policy: Policy, model: PreTrainedModel | None = None) -> None:
        self.policy = policy
        self.rotary: Rotary | None = None
        self._num_layers = 1
        self._planes: dict[int, tuple[Plane, ...]] = {}
        self._documents: Documents | None = None
        config = policy.config
        if model is not None:
            shape = ModelShape.of(model)
            self._num_layers = shape.num_layers
            config.check_model(shape.num_layers, shape.num_kv_heads)
            self.rotary = Rotary(model) if policy.rolling else None
        elif policy.rolling or config.pattern or config.layers != "flat":
            raise ValueError(
                "rolling positions, patterns and pyramids depend on the model: build "
                "HybridAttention(policy, model)"
            )

    @staticmethod
    def attach(model: PreTrainedModel) -> None:
        """Make `model` compute its attention through the `hybrid=` argument of its forward."""
        _register()
        model.set_attn_implementation(NAME)

    def over(self, documents: Documents | None) -> HybridAttention:
        """Return the same attention for rows that documents share; None for rows of one each."""
        shared = copy(self)
        shared._documents = documents
        return shared

    def position_ids(self, ids: Tensor) -> Tensor:
        """Return the positions that the model rotates for: (B, N), 0 if positions are rolling."""
        if self.policy.rolling:
            return torch.zeros_like(ids)
        if self._documents is not None:
            return self._documents.positions
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None
    ) -> Tensor:
        """Compute the attention of one layer over a whole sequence.

        Args:
            query: (B, H, N, D), rotated unless positions are rolling.
            key, value: (B, G, N, D).
            scaling: factor on the logits; D ** -0.5 when None.

        Returns:
            (B, H, N, D), differentiable once in all three.
        """
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.attend(0, query, key, value, factor)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if layer_idx not in self._planes:
            self._planes[layer_idx] = self.policy.planes(layer_idx, self._num_layers, key.shape[1])
        # Under autocast a model rotates in float32 what it projected in 16 bits. From here on
        # nothing is cast, so that the way back computes chunks and scores as the way here did.
        query, key = query.to(value.dtype), key.to(value.dtype)
        with torch.autocast(value.device.type, enabled=False):
            attend = partial(self._attend_rows, layer_idx=layer_idx, scaling=scaling)
            if self._documents is None:
                return attend(query, key, value)
            return self._documents.attend(attend, query, key, value)

    def _attend_rows(
        self, query: Tensor, key: Tensor, value: Tensor, *, layer_idx: int, scaling: float
    ) -> Tensor:
        return attend_by_plane(
            self._planes[layer_idx],
            query,
            key,
            value,
            partial(self._attend_plane, layer_idx=layer_idx, scaling=scaling),
        )

    def _attend_plane(
        self,
        plane: Plane,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer_idx: int,
        scaling: float,
    ) -> Tensor:
        walk = Walk(
            policy=plane.policy,
            layer_idx=layer_idx,
            heads=plane.heads,
            scaling=scaling,
            rotary=self.rotary,
        )
        if not plane.policy.evicts(query.shape[2]):
            return walk.dense(query, key, value)
        return walk_with_gradients(query, key, value, walk)


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
    """Attend as transformers asks a registered function to: (B, H, T, D) in, (B, T, H, D) out."""
    if hybrid is None:
        raise ValueError(
            "this model's attention is 'hybrid': call it with hybrid=HybridAttention(...)"
        )
    if dropout:
        raise ValueError(f"attention dropout {dropout} is not supported; set attention_dropout=0")
    window = features.get("sliding_window")
    if window is not None and query.shape[2] > window:
        raise ValueError(
            f"{query.shape[2]} tokens are more than {type(module).__name__}'s window of {window}; "
            "give it shorter rows"
        )
    for feature in ("softcap", "s_aux"):
        if features.get(feature) is not None:
            raise ValueError(
                f"{type(module).__name__} asks for {feature}, which hybrid attention does not "
                "compute; use a model without it"
            )
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    if layer_idx == 0:
        _check_positions(hybrid, features.get("position_ids"))
    out = hybrid.attend(layer_idx, query, key, value, scaling)
    return out.transpose(1, 2).contiguous(), None


def _check_positions(hybrid: Attender, position_ids: Tensor | None) -> None:
    """Refuse keys that are rotated already: rotating them again would be silently wrong."""
    if not hybrid.policy.rolling:
        return
    on_gpu = position_ids is not None and position_ids.is_cuda
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return  # looking at values would end the capture; the step before it has been looked at
    if position_ids is None or bool(position_ids.any()):
        raise ValueError(
            "policy.positions='rolling' needs unrotated keys: call the model with "
            "position_ids=hybrid.position_ids(...)"
        )


def _no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Build no mask, as transformers asks for one: causality is part of the chunk walk."""
    if attention_mask is not None and not bool(attention_mask[:, 0].all()):
        raise ValueError(
            "attention_mask pads on the left; hybrid attention needs padding on the right "
            "(tokenizer.padding_side='right')"
        )


@cache
def _register() -> None:
    """Make the attention known to transformers, whose modelling code takes seconds to import."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _hybrid_forward)
    AttentionMaskInterface.register(NAME, _no_mask)
