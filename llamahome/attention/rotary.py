"""Rotary embeddings, where attention has to rotate keys itself, or to turn them back.

Rolling positions rotate keys for their place in the cache instead of their place in the text: Xiao
et al. 2023, "StreamingLLM", arXiv 2309.17453, section 3.2. The model is run at position 0, which
rotates nothing; queries and keys are rotated here, with the model's own frequencies (and so with
its scaling, for example Llama 3.1's).

Axes: B batch, X heads, T tokens, D head_dim.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llamahome.attention.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Types whose angles depend on the position alone.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def frequencies(config: PreTrainedConfig) -> tuple[Tensor, float] | None:
    """Return the angles per position (D / 2,) of a model that rotates halves of whole heads.

    With them comes the factor on cos and sin. None for a model whose angles depend on more than the
    position, or that does not rotate whole heads.
    """
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if not rope or kind not in STATIC_ROPE or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    if kind == "default":
        dim = ModelShape.of_config(config).head_dim
        steps = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        return 1.0 / rope["rope_theta"] ** steps, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inv_freq, factor


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the halves of `x` (..., D) by `angles` (..., D / 2)."""
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Rotary:
    """A model's rotary embedding at any positions.

    Raises:
        ValueError: for a model that does not rotate halves of whole heads, as Llama does.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        embedding: nn.Module | None = getattr(model.base_model, "rotary_emb", None)
        if embedding is not None:
            self._embedding = embedding
        if embedding is None or not self._rotates_as_llama(model):
            raise ValueError(
                f"policy.positions='rolling': {type(model).__name__} does not rotate keys as "
                "Llama does; use policy.positions=absolute"
            )

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate `x` (B, X, T, D), which is unrotated, for `positions` (B or 1, T)."""
        cos, sin = self._embedding(x, positions)
        first, second = x.chunk(2, dim=-1)
        half_turned = torch.cat([-second, first], dim=-1)
        rotated: Tensor = x * cos.unsqueeze(1) + half_turned * sin.unsqueeze(1)
        return rotated

    def _rotates_as_llama(self, model: PreTrainedModel) -> bool:
        apply = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
        if apply is None:
            return False
        positions = torch.arange(3, device=model.device)[None]
        dim = ModelShape.of(model).head_dim
        probe = torch.linspace(-1, 1, 3 * dim, device=model.device).view(1, 1, 3, dim)
        cos, sin = self._embedding(probe, positions)
        if cos.shape[-1] != dim:
            return False
        theirs = apply(probe, probe, cos, sin)[0]
        return torch.allclose(self(probe, positions), theirs, atol=1e-5)
