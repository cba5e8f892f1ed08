"""Planes as the C++ kernels read them. Axes as in `llamahome.cache.plane`.

Keys lie in tiles of 16, so that 16 of them are the lanes of one vector: (slots, G, C / 16, D, 16).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llamahome.attention import Entries, Policy
from llamahome.cache.plane import PlaneShape

TILE = 16


@dataclass(frozen=True, kw_only=True)
class TiledPlane:
    """A plane in tiles, kept by a `torch.classes.llamahome.Model`.

    Attributes:
        keys: (slots, G, C / 16, D, 16), C rounded up to tiles.
        values: (slots, G, C, D).
        key_scales, value_scales: (slots, G, C) float32 where both are int8, else None: a number is
            its int8 times its entry's scale.
        mass: (slots, G, C) float32.
        positions: (slots, G, C) int64.
        model: whose plane this is.
    """

    shape: PlaneShape
    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    mass: Tensor
    positions: Tensor
    model: Any

    @classmethod
    def allocate(
        cls, shape: PlaneShape, dtype: torch.dtype, model: Any, budget_index: int
    ) -> TiledPlane:
        """A plane of zeros that `model` knows; `budget_index` says where a step tells how much of
        it is held."""
        capacity = -(-shape.capacity // TILE) * TILE
        size = (shape.slots, len(shape.heads), capacity)
        tiles = (*size[:2], capacity // TILE, shape.head_dim, TILE)
        scaled = dtype == torch.int8
        plane = cls(
            shape=shape,
            keys=_zeros(tiles, dtype),
            values=_zeros((*size, shape.head_dim), dtype),
            key_scales=torch.zeros(size) if scaled else None,
            value_scales=torch.zeros(size) if scaled else None,
            mass=torch.zeros(size),
            positions=torch.zeros(size, dtype=torch.int64),
            model=model,
        )
        model.add_plane(
            shape.layer_idx,
            list(shape.heads),
            budget_index,
            plane.keys,
            plane.values,
            plane.mass,
            plane.positions,
            plane.key_scales,
            plane.value_scales,
            None,
        )
        return plane

    @property
    def heads(self) -> tuple[int, ...]:
        return self.shape.heads

    @property
    def policy(self) -> Policy:
        return self.shape.policy

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """By name; all but keys have entries along axis 2."""
        tensors = {
            "keys": self.keys,
            "values": self.values,
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
            "mass": self.mass,
            "positions": self.positions,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def compact(
        self, rows: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        assert policy.scorer is not None
        assert policy.config.budget is not None
        entries = _TiledEntries(self, rows, count)
        scores = policy.scorer.score(entries).double()
        self.model.compact(
            self.shape.layer_idx,
            self.shape.index,
            rows,
            scores.contiguous(),
            count,
            policy.config.budget,
            policy.config.recent,
            lengths,
            sinks,
        )

    def wipe(self, row: int) -> None:
        for stored in self._tensors.values():
            stored[row] = 0

    def save(self, row: int, count: int) -> dict[str, Tensor]:
        tiles = -(-count // TILE)
        return {
            name: tensor[row, :, : tiles if name == "keys" else count].clone()
            for name, tensor in self._tensors.items()
        }

    def restore(self, row: int, saved: dict[str, Tensor]) -> None:
        for name, tensor in saved.items():
            self._tensors[name][row, :, : tensor.shape[1]] = tensor


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in huge pages, which must be asked for before memory is touched."""
    tensor = torch.empty(shape, dtype=dtype)
    torch.ops.llamahome.advise_huge_pages(tensor)
    return tensor.zero_()


class _TiledEntries(Entries):
    """The first `count` entries of some slots; keys and values are laid out when a score asks."""

    def __init__(self, plane: TiledPlane, rows: Tensor, count: int) -> None:
        for name, value in (
            ("_plane", plane),
            ("_rows", rows),
            ("_count", count),
            ("mass", plane.mass[rows, :, :count]),
            ("positions", plane.positions[rows, :, :count]),
            ("layer_idx", plane.shape.layer_idx),
            ("heads", plane.heads),
        ):
            object.__setattr__(self, name, value)

    _plane: TiledPlane
    _rows: Tensor
    _count: int

    @cached_property
    def keys(self) -> Tensor:
        """(B, G, S, D) float32."""
        tiles = self._plane.keys[self._rows].transpose(-1, -2).flatten(2, 3)  # (B, G, C, D)
        return self._scaled(tiles, self._plane.key_scales)

    @cached_property
    def values(self) -> Tensor:
        """(B, G, S, D) float32."""
        return self._scaled(self._plane.values[self._rows], self._plane.value_scales)

    def _scaled(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        wide = stored[:, :, : self._count].float()
        return wide if scales is None else wide * scales[self._rows, :, : self._count, None]
