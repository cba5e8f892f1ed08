"""One forward over some slots. Axes as in `llamahome.cache.slots`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamahome.attention import Policy, attend
from llamahome.attention.kernels import chunk_attend, fastest
from llamahome.cache.plane import Plane, PlaneSlots

if TYPE_CHECKING:
    from llamahome.cache.slots import Slots


class SlotStep:
    """One forward over some slots; a model takes it as `hybrid=`. Open it with `Slots.begin`.

    Rows may bring different numbers of tokens, padded on the right to the longest.
    """

    def __init__(self, slots: Slots, rows: list[int], tokens: list[int]) -> None:
        self.slots = slots
        self.policy = slots.policy
        self.rows = rows
        self.tokens = tokens
        device = slots.device
        self.lengths = torch.tensor([slots.lengths[r] for r in rows], device=device)
        self.offsets = torch.arange(max(tokens), device=device)
        self.real = self.offsets < torch.tensor(tokens, device=device)[:, None]  # (B, T)
        self.index = torch.tensor(rows, device=device)
        self.adjacent = rows == list(range(rows[0], rows[0] + len(rows)))
        self.positions = self.lengths[:, None] + self.offsets  # (B, T)
        self._of_budget: dict[int | None, _PlaneStep] = {}

    @property
    def position_ids(self) -> Tensor:
        """What the model is to rotate for: (B, T), all 0 where positions are rolling."""
        return torch.zeros_like(self.positions) if self.policy.rolling else self.positions

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Write the step's keys (B, G, T, D) and values, and attend: (B, H, T, D)."""
        planes = self.slots.layers[layer_idx].planes
        if len(planes) == 1:
            return self._step_of(planes[0]).attend(planes[0], query, key, value, scaling)
        grouped = query.unflatten(1, (key.shape[1], -1))  # (B, G, R, T, D)
        out = torch.empty_like(grouped)
        for plane in planes:
            heads = list(plane.heads)
            step = self._step_of(plane)
            own = grouped[:, heads].flatten(1, 2)
            attended = step.attend(plane, own, key[:, heads], value[:, heads], scaling)
            out[:, heads] = attended.unflatten(1, (len(heads), -1))
        return out.flatten(1, 2)

    def _step_of(self, plane: Plane) -> _PlaneStep:
        """Where the step's tokens go and what they see is alike in all planes of a budget."""
        budget = plane.policy.config.budget
        if budget not in self._of_budget:
            self._of_budget[budget] = _PlaneStep(
                self, [self.slots.policies_of(row)[budget] for row in self.rows]
            )
        return self._of_budget[budget]


class _PlaneStep:
    """A step, as planes of one budget see it; each row has its policy."""

    def __init__(self, step: SlotStep, policies: list[Policy]) -> None:
        slots, device = step.slots, step.slots.device
        self._step = step
        self._policies = policies
        self._rotary = slots.rotary
        held = [p.held(slots.lengths[row]) for p, row in zip(policies, step.rows, strict=True)]
        counts = torch.tensor(held, device=device)
        self._read = max(count + n for count, n in zip(held, step.tokens, strict=True))
        self._places = counts[:, None] + step.offsets  # (B, T): where in the slot
        self._visible = torch.arange(self._read, device=device) <= self._places[..., None]
        self._source = step.real.nonzero(as_tuple=True)
        row_of, token_of = self._source
        self._target = (step.index[row_of], slice(None), self._places[row_of, token_of])
        self._target_position = step.positions[row_of, token_of][:, None]
        self._counted = self._weights()

    def _weights(self) -> Tensor | None:
        """Of the step's queries in the mass: (B, T), 0 for padding; None where nobody asks."""
        step = self._step
        if all(policy.mass is None for policy in self._policies):
            return None
        offsets = step.positions % step.policy.interval
        rows = [
            torch.zeros_like(offset, dtype=torch.float32)
            if policy.mass is None
            else policy.mass.at(offset)
            for policy, offset in zip(self._policies, offsets, strict=True)
        ]
        return torch.stack(rows) * step.real

    def attend(
        self, plane: Plane, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        assert isinstance(plane, PlaneSlots)  # tiles are the kernels' business
        self._write(plane, key, value)
        if query.is_cuda and self._rotary is None:
            return self._attend_on_gpu(plane, query, scaling)
        keys = self._rows_of(plane.keys)
        if self._rotary is not None:
            query = self._rotary(query, self._places)
            keys = self._rotary(keys, torch.arange(self._read, device=keys.device)[None])
        out, mass = attend(
            query,
            keys,
            self._rows_of(plane.values),
            self._visible,
            scaling,
            counted=self._counted,
            group=self._step.policy.config.group,
        )
        if mass is not None:
            plane.mass[:, :, : self._read].index_add_(0, self._step.index, mass)
        return out

    def _attend_on_gpu(self, plane: PlaneSlots, query: Tensor, scaling: float) -> Tensor:
        step = self._step
        return chunk_attend(
            query,
            plane.keys,
            plane.values,
            step.index,
            self._places[:, 0],
            step.real.sum(dim=1),
            scaling,
            mass=None if self._counted is None else plane.mass,
            weights=self._counted,
            group=step.policy.config.group,
            implementation=fastest(query.device),
        )

    def _write(self, plane: PlaneSlots, key: Tensor, value: Tensor) -> None:
        row_of, token_of = self._source
        plane.keys[self._target] = key[row_of, :, token_of].to(plane.keys.dtype)  # (P, G, D)
        plane.values[self._target] = value[row_of, :, token_of].to(plane.values.dtype)
        plane.mass[self._target] = 0.0
        plane.positions[self._target] = self._target_position

    def _rows_of(self, stored: Tensor) -> Tensor:
        """(B, G, S, D) of the step's rows; a view, not a copy, where the rows lie side by side."""
        step = self._step
        read = stored[:, :, : self._read]
        if step.adjacent:
            return read[step.rows[0] : step.rows[0] + len(step.rows)]
        return read.index_select(0, step.index)
