"""How attention probability adds up to the mass of a key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mass:
    """A policy's way of counting, in terms of chunks: mass is as of the end of a chunk.

    So it comes out alike whether a chunk's tokens arrive together or one by one.

    Attributes:
        weights: of the queries of a chunk, by offset in it; `interval` of them.
        carry: what a chunk's end leaves of the mass for the next chunk.
        group: `sum` or `max` over the query heads of a KV group.
    """

    weights: tuple[float, ...]
    carry: float = 1.0
    group: str = "sum"

    def at(self, offsets: Tensor) -> Tensor:
        """Weights of the queries at these offsets in their chunk."""
        return torch.tensor(self.weights, device=offsets.device)[offsets]
