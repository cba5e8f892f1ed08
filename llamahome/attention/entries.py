"""Entries of a KV cache. Axes: B batch, G KV heads, S keys, D head_dim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
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
        return replace(
            self,
            keys=self.keys.gather(2, wide),
            values=self.values.gather(2, wide),
            mass=self.mass.gather(2, index),
            positions=self.positions.gather(2, index),
            features=None if self.features is None else self.features.gather(2, index),
        )


class SequenceEntries(Entries):
    """Entries of a sequence that is at hand, whose keys and values are gathered when they are read.

    Args:
        whole: the entries of all tokens, in their order.
        mass, positions, features: as `Entries` has them.
    """

    whole: Entries

    def __init__(
        self, whole: Entries, *, mass: Tensor, positions: Tensor, features: Tensor | None
    ) -> None:
        columns = {"whole": whole, "mass": mass, "positions": positions, "features": features}
        for name, value in {**columns, "layer_idx": whole.layer_idx, "heads": whole.heads}.items():
            object.__setattr__(self, name, value)

    @property
    def keys(self) -> Tensor:
        return self._gathered(self.whole.keys)

    @property
    def values(self) -> Tensor:
        return self._gathered(self.whole.values)

    def followed_by(self, tokens: slice) -> SequenceEntries:
        """Return these entries, and after them some tokens of the sequence."""
        later = [column[:, :, tokens] for column in _scalars(self.whole)]
        return self._with(
            torch.cat([own, new], dim=2) for own, new in zip(_scalars(self), later, strict=True)
        )

    def kept(self, index: Tensor) -> SequenceEntries:
        """Return the entries at `index` (B, G, K)."""
        return self._with(column.gather(2, index) for column in _scalars(self))

    def with_mass(self, mass: Tensor) -> SequenceEntries:
        """Return the same entries with another mass."""
        return self._with([mass, *_scalars(self)[1:]])

    def _with(self, scalars: Iterable[Tensor]) -> SequenceEntries:
        mass, positions, *features = scalars
        return SequenceEntries(
            self.whole, mass=mass, positions=positions, features=features[0] if features else None
        )

    def _gathered(self, vectors: Tensor) -> Tensor:
        index = self.positions.unsqueeze(-1).expand(-1, -1, -1, vectors.shape[-1])
        return vectors.gather(2, index)


def _scalars(entries: Entries) -> list[Tensor]:
    """Return the columns with one element per entry: mass, positions, features if it has any."""
    columns = [entries.mass, entries.positions]
    return columns if entries.features is None else [*columns, entries.features]
