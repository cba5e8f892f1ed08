"""One token for each of some slots, in static shapes, so that a CUDA graph can replay it.

Axes: B rows (`size` of them), H query heads, G KV heads of a plane, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention import Rotary
from llamahome.attention.kernels import Implementation, KVRecord, append, decode_attend
from llamahome.attention.planes import attend_by_plane, head_indices
from llamahome.cache.plan import StepPlan
from llamahome.cache.plane import PlaneMemory, TorchPlane
from llamahome.cache.slots import Slots

Counted = tuple[bool, ...]  # by budget, whether a step adds mass there


def counted(plan: StepPlan) -> Counted:
    """Return by budget whether any row of the plan counts mass."""
    return tuple(any(rows) for rows in plan.counts_mass)


class DecodeStep:
    """A decode step of up to `size` rows; a model takes it as `hybrid=`.

        plan = slots.plan([2, 0], [1, 1])
        step.load(plan)                       # the only part that depends on what slots hold
        model(ids, position_ids=step.position_ids, hybrid=step)   # ids: (size, 1)
        slots.commit(plan)

    What varies is in tensors that `load` fills in place. Rows that a plan does not have read and
    write an entry of a slot that no other row uses, and leave it as it is.

    Args:
        counts_mass: by budget; where False no mass is added.
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
        self.size = size
        self._slots = slots
        self._counts_mass = counts_mass
        self._implementation = implementation
        device, budgets = slots.device, len(slots.budgets)
        # One tensor, so that one copy from the host fills all of these; views of it by budget.
        self._whole = torch.zeros(2 + 2 * budgets, size, dtype=torch.int64, device=device)
        self._index, self._positions = self._whole[0], self._whole[1]
        self._places, self._seen = self._whole[2 : 2 + budgets], self._whole[2 + budgets :]
        # Mass is as wide as planes keep it: in float32, or in float64 for a float64 model.
        wide = torch.promote_types(slots.dtype, torch.float32)
        self._weights = torch.zeros(budgets, size, dtype=wide, device=device)
        self._rows = torch.arange(size, device=device)
        widest = max(plane.shape.capacity for plane in slots.planes)
        self._ramp = torch.arange(widest, device=device)[None]
        self.position_ids = torch.zeros(size, 1, dtype=torch.int64, device=device)
        for layer in slots.layers:  # made now, since a capture could not
            head_indices(tuple(plane.heads for plane in layer.planes), self._rows.device)
        self.load(slots.plan([], []))

    def load(self, plan: StepPlan) -> None:
        """Make this the step of a plan with at most `size` rows of one token.

        Raises:
            ValueError: for too many rows, a row of more tokens, or a slot that comes twice.
        """
        rows = len(plan.slots)
        if rows > self.size or len(set(plan.slots)) < rows or max(plan.tokens, default=1) > 1:
            raise ValueError(
                f"slots={plan.slots}, tokens={plan.tokens}: at most {self.size} slots, no two the "
                "same, of one token each"
            )
        absent = self.size - rows
        unused = next(s for s in range(self.size) if s not in plan.slots) if absent else 0
        whole = [[*plan.slots, *[unused] * absent], [*plan.lengths, *[0] * absent]]
        whole += [[*held, *[-1] * absent] for held in plan.held]
        whole += [[*(count + 1 for count in held), *[1] * absent] for held in plan.held]
        self._whole.copy_(torch.tensor(whole))
        weights = [
            [own[0] if counts else 0.0 for own, counts in zip(plan.weights, each, strict=True)]
            + [0.0] * absent
            for each in plan.counts_mass
        ]
        self._weights.copy_(torch.tensor(weights, dtype=torch.float64))
        if not self.policy.rolling:
            self.position_ids.copy_(self._positions[:, None])

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Write the step's keys (B, G, 1, D) and values, and attend: (B, H, 1, D)."""

        def attend_plane(plane: PlaneMemory, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            assert isinstance(plane, TorchPlane)  # the C++ kernels compute with tiles
            index, kv, rotary = plane.shape.budget_index, plane.kv, self._slots.rotary
            append(
                kv,
                self._index,
                self._places[index],
                key,
                value,
                self._positions,
                implementation=self._implementation,
            )
            read, slots = kv, self._index
            if rotary is not None:
                read, slots = self._rotated(kv, rotary, query.dtype), self._rows
                query = rotary(query, (self._seen[index] - 1)[:, None])
            out = decode_attend(
                query,
                read,
                slots,
                self._seen[index],
                scaling,
                weights=self._weights[index] if self._counts_mass[index] else None,
                group=self.policy.config.group,
                implementation=self._implementation,
            )
            if rotary is not None and self._counts_mass[index]:
                kv.mass.index_add_(0, self._index, read.mass)
            return out

        planes = self._slots.layers[layer_idx].planes
        return attend_by_plane(planes, query, key, value, attend_plane)

    def _rotated(self, kv: KVRecord, rotary: Rotary, dtype: torch.dtype) -> KVRecord:
        """Copy the rows' slots, without mass, with keys rotated for their places."""
        keys = kv.keys.index_select(0, self._index).to(dtype)
        return KVRecord(
            keys=rotary(keys, self._ramp[:, : keys.shape[2]]),
            values=kv.values.index_select(0, self._index),
            mass=torch.zeros_like(kv.mass[: self.size]),
            positions=kv.positions,
        )
