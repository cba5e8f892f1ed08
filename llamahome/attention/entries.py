"""What a KV cache holds. Axes: B batch, G KV heads, S keys, D head_dim."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What one layer's cache holds, oldest first.

    Attributes:
        keys, values: (B, G, S, D), keys as attended to (rotated).
        mass: (B, G, S), attention probability each key has received so far.
        positions: (B, G, S), int64, of the token in its sequence.
        layer_idx: of the layer.
    """

    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor
    layer_idx: int
