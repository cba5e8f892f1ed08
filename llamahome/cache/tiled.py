"""Planes in the layout of the C++ kernels. Axes as in `llamahome.cache.plane`.

Keys are in tiles of 16, so that 16 of them are the lanes of one vector: (slots, G, C / 16, D, 16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llamahome.attention import Entries, Policy
from llamahome.attention.kernels import KVRecord
from llamahome.attention.scorer import FeatureNetwork
from llamahome.cache.plane import PlaneMemory, PlaneShape

TILE = 16


@dataclass(frozen=True, kw_only=True)
class TiledPlane(PlaneMemory):
    """A plane of a `torch.classes.llamahome.Model`, which reads, writes and compacts it.

    Attributes:
        kv: keys (slots, G, C / 16, D, 16) with C rounded up to tiles, values (slots, G, C, D).
    """

    model: Any

    @classmethod
    def allocate(cls, shape: PlaneShape, dtype: torch.dtype, model: Any) -> TiledPlane:
        """Allocate a plane of zeros and add it to `model`, in the order of a layer's planes."""
        capacity = -(-shape.capacity // TILE) * TILE
        size = (shape.slots, len(shape.heads), capacity)
        tiles = (*size[:2], capacity // TILE, shape.head_dim, TILE)
        scaled = dtype == torch.int8
        kv = KVRecord(
            keys=_zeros(tiles, dtype),
            values=_zeros((*size, shape.head_dim), dtype),
            key_scales=torch.zeros(size) if scaled else None,
            value_scales=torch.zeros(size) if scaled else None,
            mass=torch.zeros(size),
            positions=torch.zeros(size, dtype=torch.int64),
            features=torch.zeros(size) if shape.has_features else None,
        )
        model.add_plane(
            shape.layer_idx,
            list(shape.heads),
            shape.budget_index,
            kv.keys,
            kv.values,
            kv.mass,
            kv.positions,
            kv.key_scales,
            kv.value_scales,
            kv.features,
        )
        plane = cls(shape=shape, kv=kv, model=model)
        network = plane._network
        if network is not None:
            own = network(shape.layer_idx, shape.heads)
            weights = (own.keys, own.values, own.hidden_bias, own.out, own.bias)
            model.set_features(shape.layer_idx, shape.index, *weights)
        return plane

    @property
    def writes_features(self) -> bool:
        return self._network is not None

    @property
    def _network(self) -> Callable[[int, tuple[int, ...]], FeatureNetwork] | None:
        scorer = self.shape.policy.scorer
        return None if scorer is None else scorer.network

    def entries(self, slots: Tensor, part: slice) -> Entries:
        return _TiledEntries(self, slots, part)

    def columns(self, slot: int, count: int) -> dict[str, Tensor]:
        tiles = -(-count // TILE)
        return {
            name: tensor[slot, :, : tiles if name == "keys" else count]
            for name, tensor in self.kv.columns.items()
        }

    def compact(
        self, slots: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        assert policy.scorer is not None
        assert policy.config.budget is not None
        scores = policy.scorer.score(self.entries(slots, slice(count))).double()
        self.model.compact(
            self.shape.layer_idx,
            self.shape.index,
            slots,
            scores.contiguous(),
            count,
            policy.config.budget,
            policy.config.recent,
            lengths,
            sinks,
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate zeros in huge pages, which must be asked for before memory is touched."""
    tensor = torch.empty(shape, dtype=dtype)
    torch.ops.llamahome.advise_huge_pages(tensor)
    return tensor.zero_()


class _TiledEntries(Entries):
    """Entries of some slots; keys and values are laid out only for a score that reads them."""

    def __init__(self, plane: TiledPlane, slots: Tensor, part: slice) -> None:
        kv = plane.kv
        vars(self).update(  # past the dataclass's own __init__, which asks for keys and values
            _kv=kv,
            _slots=slots,
            _part=part,
            mass=kv.mass[slots, :, part],
            positions=kv.positions[slots, :, part],
            features=None if kv.features is None else kv.features[slots, :, part],
            layer_idx=plane.shape.layer_idx,
            heads=plane.heads,
        )

    _kv: KVRecord
    _slots: Tensor
    _part: slice

    @cached_property
    def keys(self) -> Tensor:
        """(B, G, S, D) float32."""
        tiles = self._kv.keys[self._slots].transpose(-1, -2).flatten(2, 3)  # (B, G, C, D)
        return self._scaled(tiles, self._kv.key_scales)

    @cached_property
    def values(self) -> Tensor:
        """(B, G, S, D) float32."""
        return self._scaled(self._kv.values[self._slots], self._kv.value_scales)

    def _scaled(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        wide = stored[:, :, self._part].float()
        return wide if scales is None else wide * scales[self._slots, :, self._part, None]
