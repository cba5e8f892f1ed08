"""Entries of a KV cache. Axes: B batch, G KV heads, S keys, D head_dim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

COLUMNS = ("keys", "values", "mass", "positions", "features")


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
        return self._columns(lambda column: column.gather(2, wide if column.dim() == 4 else index))

    def part(self, part: slice) -> Entries:
        """Return consecutive entries."""
        return self._columns(lambda column: column[:, :, part])

    def joined(self, later: Entries) -> Entries:
        """Return these entries, and after them `later` ones."""
        columns = iter(later.columns())
        return self._columns(lambda column: torch.cat([column, next(columns)], dim=2))

    def columns(self) -> list[Tensor]:
        """Return the tensors that have one element or vector per entry."""
        named = (getattr(self, name) for name in COLUMNS)
        return [column for column in named if column is not None]

    def _columns(self, change: Callable[[Tensor], Tensor]) -> Entries:
        named = ((name, getattr(self, name)) for name in COLUMNS)
        changed: dict[str, Any] = {name: change(c) for name, c in named if c is not None}
        return replace(self, **changed)
