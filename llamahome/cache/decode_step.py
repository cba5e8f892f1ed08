"""One token for each of some slots, in shapes that never change: what a CUDA graph can replay.

Axes as in `llamahome.cache.slots`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamahome.attention.kernels import Implementation, append, decode_attend
from llamahome.cache.plane import Plane, PlaneSlots
from llamahome.cache.slots import Slots

Counted = tuple[bool, ...]  # of each of `Slots.budgets`: whether its planes count mass


def counted(slots: Slots, rows: Sequence[int]) -> Counted:
    """What these slots' requests need counted."""
    return tuple(
        any(slots.policies_of(row)[budget].mass is not None for row in rows)
        for budget in slots.budgets
    )


class DecodeStep:
    """A decode step of up to `size` rows; a model takes it as `hybrid=`.

        step.load(rows)                       # the only part that depends on what slots hold
        model(ids, position_ids=step.position_ids, hybrid=step)   # ids: (size, 1)
        slots.commit(step)

    What varies lies in tensors that `load` fills in place. Rows that are not there read and write
    an entry of a slot that no other row uses, and leave it as it is.

    Args:
        counts_mass: of each of `slots.budgets`; where False no mass is added.
        implementation: of the kernels.

    Raises:
        ValueError: for a size of more than all slots.
    """

    def __init__(
        self, slots: Slots, size: int, counts_mass: Counted, *, implementation: Implementation
    ) -> None:
        if size > slots.num_slots:
            raise ValueError(f"size={size} exceeds the {slots.num_slots} slots")
        self.policy = slots.policy
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.size = size
        self._slots = slots
        self._counts_mass = dict(zip(slots.budgets, counts_mass, strict=True))
        self._implementation = implementation
        device, budgets = slots.device, len(slots.budgets)
        self._whole = torch.zeros(2 + 2 * budgets, size, dtype=torch.int64, device=device)
        self._index, self._positions = self._whole[0], self._whole[1]
        self._places = dict(zip(slots.budgets, self._whole[2 : 2 + budgets], strict=True))
        self._counts = dict(zip(slots.budgets, self._whole[2 + budgets :], strict=True))
        # Mass is as wide as planes keep it: in float32, or in float64 for a float64 model.
        wide = torch.promote_types(slots.dtype, torch.float32)
        self._fractions = torch.zeros(budgets, size, dtype=wide, device=device)
        self._weights = dict(zip(slots.budgets, self._fractions, strict=True))
        self._heads = {
            plane.shape.heads: torch.tensor(plane.shape.heads, device=device)
            for plane in slots.planes
        }
        self._own = torch.arange(size, device=device)
        widest = max(plane.shape.capacity for plane in slots.planes)
        self._ramp = torch.arange(widest, device=device)[None]
        self.position_ids = torch.zeros(size, 1, dtype=torch.int64, device=device)
        self.load([])

    def load(self, rows: Sequence[int]) -> None:
        """Make this the step of these slots, at most `size`, no two alike.

        Raises:
            ValueError: for rows that are too many or come twice, or a slot that is full.
        """
        if len(rows) > self.size or len(set(rows)) < len(rows):
            raise ValueError(f"rows={list(rows)}: at most {self.size} slots, no two alike")
        self._slots.check(rows, [1] * len(rows))
        self.rows, self.tokens = list(rows), [1] * len(rows)
        lengths = [self._slots.lengths[row] for row in rows]
        absent = self.size - len(rows)
        idle = [next(r for r in range(self.size) if r not in rows)] * absent if absent else []
        whole = [[*rows, *idle], [*lengths, *[0] * absent]]
        held = [
            [
                self._slots.policies_of(row)[budget].held(length)
                for row, length in zip(rows, lengths, strict=True)
            ]
            for budget in self._slots.budgets
        ]
        whole += [[*counts, *[-1] * absent] for counts in held]
        whole += [[*(count + 1 for count in counts), *[1] * absent] for counts in held]
        self._whole.copy_(torch.tensor(whole))
        self._fractions.copy_(torch.tensor(self._weights_of(lengths), dtype=torch.float64))
        if not self.policy.rolling:
            self.position_ids.copy_(self._positions[:, None])

    def _weights_of(self, lengths: list[int]) -> list[list[float]]:
        """Of each budget, of each row: its query's weight in the mass."""
        interval = self.policy.interval
        weights = []
        for budget in self._slots.budgets:
            masses = [self._slots.policies_of(row)[budget].mass for row in self.rows]
            own = [
                0.0 if mass is None else mass.weights[length % interval]
                for mass, length in zip(masses, lengths, strict=True)
            ]
            weights.append([*own, *[0.0] * (self.size - len(own))])
        return weights

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Write the step's keys (size, G, 1, D) and values, and attend: (size, H, 1, D)."""
        planes = self._slots.layers[layer_idx].planes
        if len(planes) == 1:
            return self._attend_plane(planes[0], query, key, value, scaling)
        grouped = query.unflatten(1, (key.shape[1], -1))  # (B, G, R, 1, D)
        out = torch.empty_like(grouped)
        for plane in planes:
            heads = self._heads[plane.shape.heads]
            attended = self._attend_plane(
                plane,
                grouped.index_select(1, heads).flatten(1, 2),
                key.index_select(1, heads),
                value.index_select(1, heads),
                scaling,
            )
            out.index_copy_(1, heads, attended.unflatten(1, (heads.shape[0], -1)))
        return out.flatten(1, 2)

    def _attend_plane(
        self, plane: Plane, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        assert isinstance(plane, PlaneSlots)  # tiles are the kernels' business
        budget = plane.policy.config.budget
        append(
            plane.keys,
            plane.values,
            plane.mass,
            plane.positions,
            self._index,
            self._places[budget],
            key,
            value,
            self._positions,
            implementation=self._implementation,
        )
        if self._slots.rotary is not None:
            return self._attend_rolling(plane, query, scaling)
        return decode_attend(
            query,
            plane.keys,
            plane.values,
            self._index,
            self._counts[budget],
            scaling,
            mass=plane.mass if self._counts_mass[budget] else None,
            weights=self._weights[budget],
            group=self.policy.config.group,
            implementation=self._implementation,
        )

    def _attend_rolling(self, plane: PlaneSlots, query: Tensor, scaling: float) -> Tensor:
        """Keys lie unrotated: they are turned for their places in a copy, which is attended to."""
        rotary, budget = self._slots.rotary, plane.policy.config.budget
        assert rotary is not None
        counts = self._counts[budget]
        keys = plane.keys.index_select(0, self._index).to(query.dtype)
        mass = torch.zeros_like(plane.mass[: self.size]) if self._counts_mass[budget] else None
        out = decode_attend(
            rotary(query, (counts - 1)[:, None]),
            rotary(keys, self._ramp[:, : keys.shape[2]]),
            plane.values.index_select(0, self._index),
            self._own,
            counts,
            scaling,
            mass=mass,
            weights=self._weights[budget],
            group=self.policy.config.group,
            implementation=self._implementation,
        )
        if mass is not None:
            plane.mass.index_add_(0, self._index, mass)
        return out
