"""Entries of a KV cache. Axes: B batch, G KV heads, S keys, D head_dim."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Entries that some KV heads of one layer hold, oldest first.

    Attributes:
        keys, values: (B, G, S, D), keys as the cache stores them.
        mass: (B, G, S), attention probability each key has received, as its policy counts it.
        positions: (B, G, S), int64, of the token in its sequence.
        layer_idx: of the layer.
        heads: which of the layer's KV heads these are, G of them.
        features: (B, G, S) float32, as the policy's scorer wrote them; None where it writes none.
    """

    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor
    layer_idx: int
    heads: tuple[int, ...]
    features: Tensor | None = None

    @property
    def ages(self) -> Tensor:
        """Number of queries that could see each key, its own included: (B, G, S)."""
        return self.positions[..., -1:] + 1 - self.positions

    def take(self, index: Tensor) -> Entries:
        """Return the entries at `index` (B, G, K)."""
        wide = index.unsqueeze(-1).expand(-1, -1, -1, self.keys.shape[-1])
        return Entries(
            keys=self.keys.gather(2, wide),
            values=self.values.gather(2, wide),
            mass=self.mass.gather(2, index),
            positions=self.positions.gather(2, index),
            layer_idx=self.layer_idx,
            heads=self.heads,
            features=None if self.features is None else self.features.gather(2, index),
        )
