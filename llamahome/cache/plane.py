"""What slots hold, layer by layer. Axes: G KV heads of a plane, C capacity, D head_dim."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llamahome.attention import Entries, Policy


@dataclass(frozen=True, kw_only=True)
class PlaneSlots:
    """Entries of some KV heads of a layer, of every slot.

    Attributes:
        heads: which of the layer's KV heads, G of them.
        policy: of their budget.
        keys, values: (slots, G, C, D); keys unrotated where positions are rolling.
        mass, positions: (slots, G, C).
    """

    heads: tuple[int, ...]
    policy: Policy
    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.keys, self.values, self.mass, self.positions))

    def entries(self, rows: Tensor, count: int, layer_idx: int) -> Entries:
        """The first `count` entries of some slots, copied."""
        return Entries(
            keys=self.keys[rows, :, :count],
            values=self.values[rows, :, :count],
            mass=self.mass[rows, :, :count],
            positions=self.positions[rows, :, :count],
            layer_idx=layer_idx,
            heads=self.heads,
        )

    def store(self, rows: Tensor, entries: Entries) -> None:
        """Put entries where `entries` took them from, from the start of the slots on."""
        count = entries.positions.shape[2]
        self.keys[rows, :, :count] = entries.keys
        self.values[rows, :, :count] = entries.values
        self.mass[rows, :, :count] = entries.mass
        self.positions[rows, :, :count] = entries.positions


@dataclass(frozen=True)
class LayerSlots:
    """One layer's entries: its KV heads in planes of equal budget."""

    planes: tuple[PlaneSlots, ...]
