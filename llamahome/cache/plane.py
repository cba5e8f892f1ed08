"""What slots hold, layer by layer. Axes: G KV heads of a plane, C capacity, D head_dim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llamahome.attention import Entries, Policy
from llamahome.attention.kernels import compact, fastest


@dataclass(frozen=True, kw_only=True)
class PlaneShape:
    """What a plane has room for.

    Attributes:
        layer_idx, index: of its layer, and among that layer's planes.
        heads: which of the layer's KV heads, G of them.
        policy: of their budget.
        slots, capacity, head_dim: how many, of how many entries, of what size.
    """

    layer_idx: int
    index: int
    heads: tuple[int, ...]
    policy: Policy
    slots: int
    capacity: int
    head_dim: int


def plane_shapes(
    policy: Policy,
    num_layers: int,
    num_kv_heads: int,
    num_slots: int,
    *,
    max_length: int,
    head_dim: int,
) -> list[list[PlaneShape]]:
    """Layer by layer, a plane for each budget that some of its KV heads have."""
    return [
        [
            PlaneShape(
                layer_idx=layer_idx,
                index=index,
                heads=plane.heads,
                policy=plane.policy,
                slots=num_slots,
                capacity=plane.policy.capacity(max_length),
                head_dim=head_dim,
            )
            for index, plane in enumerate(policy.planes(layer_idx, num_layers, num_kv_heads))
        ]
        for layer_idx in range(num_layers)
    ]


class Plane(Protocol):
    """Entries of some KV heads of a layer, of every slot.

    Attributes:
        shape: what it has room for.
        mass, positions: (slots, G, >= C).
    """

    @property
    def shape(self) -> PlaneShape: ...
    @property
    def mass(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...

    @property
    def heads(self) -> tuple[int, ...]: ...
    @property
    def policy(self) -> Policy: ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    def compact(
        self, rows: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        """Of `count` entries of each of these slots, keep those that `policy` selects."""

    def wipe(self, row: int) -> None:
        """Make a slot's entries 0."""

    def save(self, row: int, count: int) -> dict[str, Tensor]:
        """A copy on the CPU of a slot's first `count` entries."""

    def restore(self, row: int, saved: dict[str, Tensor]) -> None:
        """Put a copy back, into any slot."""


@dataclass(frozen=True, kw_only=True)
class PlaneSlots:
    """A plane as torch computes with it.

    Attributes:
        keys, values: (slots, G, C, D); keys unrotated where positions are rolling.
        mass, positions: (slots, G, C).
    """

    shape: PlaneShape
    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor

    @classmethod
    def allocate(
        cls, shape: PlaneShape, dtype: torch.dtype, device: torch.device | str
    ) -> PlaneSlots:
        size = (shape.slots, len(shape.heads), shape.capacity)
        return cls(
            shape=shape,
            keys=torch.zeros(*size, shape.head_dim, dtype=dtype, device=device),
            values=torch.zeros(*size, shape.head_dim, dtype=dtype, device=device),
            mass=torch.zeros(size, dtype=torch.promote_types(dtype, torch.float32), device=device),
            positions=torch.zeros(size, dtype=torch.int64, device=device),
        )

    @property
    def heads(self) -> tuple[int, ...]:
        return self.shape.heads

    @property
    def policy(self) -> Policy:
        return self.shape.policy

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.keys, self.values, self.mass, self.positions))

    def entries(self, rows: Tensor, count: int) -> Entries:
        """The first `count` entries of some slots, copied."""
        return Entries(
            keys=self.keys[rows, :, :count],
            values=self.values[rows, :, :count],
            mass=self.mass[rows, :, :count],
            positions=self.positions[rows, :, :count],
            layer_idx=self.shape.layer_idx,
            heads=self.heads,
        )

    def compact(
        self, rows: Tensor, count: int, policy: Policy, lengths: Tensor, sinks: Tensor
    ) -> None:
        stay = policy.select(self.entries(rows, count), lengths, sinks)
        stored = (self.keys, self.values, self.mass, self.positions)
        compact(*stored, rows, stay, implementation=fastest(self.keys.device))

    def wipe(self, row: int) -> None:
        for stored in (self.keys, self.values, self.mass):
            stored[row] = 0

    def save(self, row: int, count: int) -> dict[str, Tensor]:
        return {
            name: getattr(self, name)[row, :, :count].to("cpu", copy=True)
            for name in ("keys", "values", "mass", "positions")
        }

    def restore(self, row: int, saved: dict[str, Tensor]) -> None:
        for name, tensor in saved.items():
            getattr(self, name)[row, :, : tensor.shape[1]] = tensor.to(self.keys.device)


@dataclass(frozen=True)
class LayerSlots:
    """One layer's entries: its KV heads in planes of equal budget."""

    planes: tuple[Plane, ...]
