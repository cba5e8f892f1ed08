"""Mass of a key: the attention probability that it has received."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mass:
    """A policy's way of counting mass, as of the end of each chunk.

    Counting by chunks gives the same mass whether a chunk's tokens arrive together or one by one.

    Attributes:
        weights: of the queries of a chunk, by offset in it; `interval` of them.
        carry: share of the mass that a chunk's end leaves for the next chunk.
        group: `sum` or `max` over the query heads of a KV group.
    """

    weights: tuple[float, ...]
    carry: float = 1.0
    group: str = "sum"

    def at(self, offsets: Tensor) -> Tensor:
        """Return the weights of the queries at these offsets in their chunk."""
        return torch.tensor(self.weights, device=offsets.device)[offsets]
