"""Memory of planes: the entries of some KV heads of a layer, in every slot.

Axes: B slots, G KV heads of a plane, S entries read, C capacity, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from llamahome.attention import Entries, Policy
from llamahome.attention.kernels import KVRecord, compact, fastest
from llamahome.attention.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class PlaneShape:
    """Place and size of a plane.

    Attributes:
        layer_idx, index: its layer, and its place among that layer's planes.
        heads: which of the layer's KV heads, G of them.
        policy: of their budget.
        budget_index: place of that budget in `Slots.budgets`.
        slots, capacity, head_dim: number of slots, entries of a slot and head, their size.
        has_features: whether entries have a feature.
    """

    layer_idx: int
    index: int
    heads: tuple[int, ...]
    policy: Policy
    budget_index: int
    slots: int
    capacity: int
    head_dim: int
    has_features: bool


def plane_shapes(
    policy: Policy, model: ModelShape, num_slots: int, max_length: int
) -> list[list[PlaneShape]]:
    """Return by layer a plane for each budget among its KV heads; budgets ascend, None last."""
    count = model.num_layers
    layers = [policy.planes(i, count, model.num_kv_heads) for i in range(count)]
    budgets = sorted(
        {plane.policy.config.budget for planes in layers for plane in planes},
        key=lambda budget: (budget is None, budget),
    )
    return [
        [
            PlaneShape(
                layer_idx=layer_idx,
                index=index,
                heads=plane.heads,
                policy=plane.policy,
                budget_index=budgets.index(plane.policy.config.budget),
                slots=num_slots,
                capacity=plane.policy.capacity(max_length),
                head_dim=model.head_dim,
                has_features=policy.has_features,
            )
            for index, plane in enumerate(planes)
        ]
        for layer_idx, planes in enumerate(layers)
    ]


@dataclass(frozen=True, kw_only=True)
class PlaneMemory(ABC):
    """Entries of some KV heads of a layer, of every slot, in the layout that a runner reads."""

    shape: PlaneShape
    kv: KVRecord

    @property
    @abstractmethod
    def writes_features(self) -> bool:
        """Whether features are written with their entries, not at the end of a chunk."""

    @property
    def heads(self) -> tuple[int, ...]:
        return self.shape.heads

    @abstractmethod
    def entries(self, slots: Tensor, part: slice) -> Entries:
        """Copy a part of the entries of some slots (B,): (B, G, S, ...)."""

    @abstractmethod
    def columns(self, slot: int, count: int) -> dict[str, Tensor]:
        """Return views of a slot's first `count` entries, by their names in the record."""

    @abstractmethod
    def compact(
        self, slots: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        """Keep those of the `count` entries of each slot that `policy` selects.

        Args:
            slots, lengths, sinks: (B,): tokens so far and first tokens that stay of each slot.
        """


@dataclass(frozen=True, kw_only=True)
class TorchPlane(PlaneMemory):
    """A plane in the layout that torch and Triton read; keys are unrotated for rolling positions.

    Attributes:
        kv: keys and values (slots, G, C, D).
    """

    @classmethod
    def allocate(
        cls, shape: PlaneShape, dtype: torch.dtype, device: torch.device | str
    ) -> TorchPlane:
        size = (shape.slots, len(shape.heads), shape.capacity)
        wide = torch.promote_types(dtype, torch.float32)
        return cls(
            shape=shape,
            kv=KVRecord(
                keys=torch.zeros(*size, shape.head_dim, dtype=dtype, device=device),
                values=torch.zeros(*size, shape.head_dim, dtype=dtype, device=device),
                mass=torch.zeros(size, dtype=wide, device=device),
                positions=torch.zeros(size, dtype=torch.int64, device=device),
                features=torch.zeros(size, device=device) if shape.has_features else None,
            ),
        )

    @property
    def writes_features(self) -> bool:
        return False

    def entries(self, slots: Tensor, part: slice) -> Entries:
        kv = self.kv
        return Entries(
            keys=kv.keys[slots, :, part],
            values=kv.values[slots, :, part],
            mass=kv.mass[slots, :, part],
            positions=kv.positions[slots, :, part],
            layer_idx=self.shape.layer_idx,
            heads=self.heads,
            features=None if kv.features is None else kv.features[slots, :, part],
        )

    def columns(self, slot: int, count: int) -> dict[str, Tensor]:
        return {name: tensor[slot, :, :count] for name, tensor in self.kv.columns.items()}

    def compact(
        self, slots: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        stay = policy.select(self.entries(slots, slice(count)), lengths, sinks)
        compact(self.kv, slots, stay, implementation=fastest(slots.device))


def end_chunk(
    plane: PlaneMemory, policy: Policy, count: int, slots: Tensor, lengths: Tensor, sinks: Tensor
) -> None:
    """Write the features of a chunk's entries, compact, and let the mass decay.

    Args:
        count: entries that each slot holds, those of the chunk last.
        slots, lengths, sinks: as in `PlaneMemory.compact`.
    """
    if policy.scorer is None:
        return
    features, compute = plane.kv.features, policy.scorer.features
    if features is not None and compute is not None and not plane.writes_features:
        chunk = slice(count - policy.interval, count)
        features[slots, :, chunk] = compute(plane.entries(slots, chunk)).float()
    kept = policy.kept(count)
    if kept < count:
        plane.compact(slots, count, policy, lengths, sinks)
    if policy.mass is not None and policy.mass.carry != 1:
        plane.kv.mass[slots, :, :kept] *= policy.mass.carry


@dataclass(frozen=True)
class LayerSlots:
    """Planes of one layer, one for each budget among its KV heads."""

    planes: tuple[PlaneMemory, ...]
