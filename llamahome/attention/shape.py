"""The numbers of a model that its KV cache depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Configured(Protocol):
    """A model, as far as its cache needs to know it."""

    @property
    def config(self) -> PreTrainedConfig: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


def sliding_window(config: PreTrainedConfig) -> int | None:
    """Return the tokens that a layer with a sliding window sees; None without such a layer."""
    slides = getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if slides else ""]
    window: int | None = getattr(config, "sliding_window", None) or None
    return window if "sliding_attention" in kinds else None


def exact_length(config: PreTrainedConfig) -> int | None:
    """Return the most tokens for which every layer sees the whole context, under the same angles.

    A sliding window ends it, and so does the first range of longrope (Ding et al. 2024, LongRoPE):
    once a text is longer, all its keys are rotated by other angles. None for other models.
    """
    window = sliding_window(config)
    limits = [] if window is None else [window]
    rope = getattr(config, "rope_parameters", None) or {}
    # Either one rope for all layers, or one for each type of layer.
    ropes = [rope, *(own for own in rope.values() if isinstance(own, dict))]
    limits += [
        own["original_max_position_embeddings"]
        for own in ropes
        if own.get("rope_type") == "longrope"
    ]
    return min(limits, default=None)


def context_length(config: PreTrainedConfig) -> int:
    """Return the most tokens, prompt and answer together, for which a model is exact."""
    trained: int = config.max_position_embeddings
    return min(trained, exact_length(config) or trained)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Layers, heads and head size of a decoder, as transformers names them."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: Configured) -> ModelShape:
        """Read the shape from the model's config."""
        return cls.of_config(model.config)

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> ModelShape:
        """Read the shape from a decoder's config; fields it does not have follow from others."""
        heads: int = config.num_attention_heads
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
