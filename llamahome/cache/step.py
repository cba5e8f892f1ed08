"""One forward over some slots, in torch.

Axes: B rows of the step, H query heads, G KV heads of a plane, T tokens of a row, S entries read,
P tokens written (of all rows, without padding), D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention import attend
from llamahome.attention.kernels import KVRecord, chunk_attend, fastest
from llamahome.attention.planes import attend_by_plane
from llamahome.cache.plan import StepPlan
from llamahome.cache.plane import PlaneMemory, TorchPlane
from llamahome.cache.slots import Slots


class SlotStep:
    """A forward over some slots, computed with torch; a model takes it as `hybrid=`.

    Rows may have different numbers of tokens, padded on the right to the longest.
    """

    def __init__(self, slots: Slots, plan: StepPlan) -> None:
        self.policy = slots.policy
        self._slots = slots
        self.rotary = slots.rotary
        device, first, rows = slots.device, plan.slots[0], len(plan.slots)
        adjacent = plan.slots == list(range(first, first + rows))
        self.adjacent = slice(first, first + rows) if adjacent else None
        self.index = torch.tensor(plan.slots, device=device)
        self.tokens = torch.tensor(plan.tokens, device=device)
        self.offsets = torch.arange(max(plan.tokens), device=device)
        self.real = self.offsets < self.tokens[:, None]  # (B, T)
        self.source = self.real.nonzero(as_tuple=True)  # row and token of each real one, (P,) both
        self.positions = torch.tensor(plan.lengths, device=device)[:, None] + self.offsets  # (B, T)
        self._by_budget = [_BudgetStep(self, plan, index) for index in range(len(slots.budgets))]

    @property
    def position_ids(self) -> Tensor:
        """Positions that the model rotates for: (B, T), all 0 where positions are rolling."""
        return torch.zeros_like(self.positions) if self.policy.rolling else self.positions

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Write the step's keys (B, G, T, D) and values, and attend: (B, H, T, D)."""

        def attend_plane(plane: PlaneMemory, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            assert isinstance(plane, TorchPlane)  # the C++ kernels compute with tiles
            step = self._by_budget[plane.shape.budget_index]
            step.write(plane.kv, key, value)
            return step.attend(plane.kv, query, scaling)

        planes = self._slots.layers[layer_idx].planes
        return attend_by_plane(planes, query, key, value, attend_plane)


class _BudgetStep:
    """Places, masks and weights of a step, the same in all planes of a budget."""

    def __init__(self, step: SlotStep, plan: StepPlan, index: int) -> None:
        held, device = plan.held[index], step.index.device
        self._step = step
        self._read = max(count + n for count, n in zip(held, plan.tokens, strict=True))
        self._held = torch.tensor(held, device=device)
        self._places = self._held[:, None] + step.offsets  # (B, T), in the slot
        self._visible = torch.arange(self._read, device=device) <= self._places[..., None]
        rows, tokens = step.source
        self._target = (step.index[rows], slice(None), self._places[rows, tokens])
        self._target_position = step.positions[rows, tokens][:, None]
        self._weights = self._weights_of(plan, plan.counts_mass[index])

    def _weights_of(self, plan: StepPlan, counts_mass: list[bool]) -> Tensor | None:
        """Return the queries' weights (B, T), 0 for padding; None when no row counts mass."""
        if not any(counts_mass):
            return None
        longest = max(plan.tokens)
        weights = [
            [*own, *[0.0] * (longest - len(own))] if counts else [0.0] * longest
            for counts, own in zip(counts_mass, plan.weights, strict=True)
        ]
        return torch.tensor(weights, device=self._held.device)

    def write(self, kv: KVRecord, key: Tensor, value: Tensor) -> None:
        """Write the keys and values of the step's tokens, without mass."""
        rows, tokens = self._step.source
        kv.keys[self._target] = key[rows, :, tokens].to(kv.keys.dtype)  # (P, G, D)
        kv.values[self._target] = value[rows, :, tokens].to(kv.values.dtype)
        kv.mass[self._target] = 0.0
        kv.positions[self._target] = self._target_position

    def attend(self, kv: KVRecord, query: Tensor, scaling: float) -> Tensor:
        step, rotary, group = self._step, self._step.rotary, self._step.policy.config.group
        if query.is_cuda and rotary is None:
            return chunk_attend(
                query,
                kv,
                step.index,
                self._held,
                step.tokens,
                scaling,
                weights=self._weights,
                group=group,
                implementation=fastest(query.device),
            )
        # On a CPU the prefix that any row holds is read in place; slots hold no NaN behind it.
        keys = self._rows_of(kv.keys, query.dtype)
        if rotary is not None:
            query = rotary(query, self._places)
            keys = rotary(keys, torch.arange(self._read, device=keys.device)[None])
        values = self._rows_of(kv.values, query.dtype)
        out, mass = attend(
            query, keys, values, self._visible, scaling, counted=self._weights, group=group
        )
        if mass is not None:
            kv.mass[:, :, : self._read].index_add_(0, step.index, mass)
        return out

    def _rows_of(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, G, S, D) of the step's rows; a view, not a copy, of adjacent slots."""
        step = self._step
        read = stored[:, :, : self._read]
        rows = read[step.adjacent] if step.adjacent else read.index_select(0, step.index)
        return rows.to(dtype)
