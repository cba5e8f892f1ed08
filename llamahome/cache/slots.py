"""Slots: the KV entries of many requests, allocated once, compacted at chunk boundaries.

The KV heads of a layer that have the same budget form a *plane*, so budgets may differ by layer and
head without padding, and every shape is static. How many entries a head holds depends only on its
budget and the number of tokens so far.

Axes: G KV heads of a plane, C capacity, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from llamahome.attention import Policy, Rotary
from llamahome.attention.shape import Configured, ModelShape, exact_length
from llamahome.cache.plan import SlotPolicies, StepPlan
from llamahome.cache.plane import (
    LayerSlots,
    PlaneMemory,
    PlaneShape,
    TorchPlane,
    end_chunk,
    plane_shapes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Allocates a plane in the layout of the runner that computes with it.
Allocate = Callable[[PlaneShape], PlaneMemory]


@dataclass(frozen=True, eq=False)
class SlotState:
    """A slot between two steps, copied to the CPU; it fits into any slot of the same shape.

    Attributes:
        length: tokens that went through the slot.
        sink: first tokens that it never evicts.
        tensors: its entries by name, as `Slots.save` names them. They are never written to, since
            snapshots share them.
    """

    length: int
    sink: int
    tensors: dict[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Slots:
    """Fixed-size KV memory for `num_slots` requests.

    A forward goes between `plan` and `commit`:

        plan = slots.plan([2, 0], [16, 3])     # which slots, how many tokens each
        step = SlotStep(slots, plan)           # or another way to compute it
        model(ids, position_ids=step.position_ids, hybrid=step)   # writes, attends, adds mass
        slots.commit(plan)                     # counts the tokens; compacts full chunks

    A step never crosses a chunk boundary: `room` is the number of tokens before the next.

    Args:
        model: gives the shape and the device.
        dtype: of keys and values; None is the model's.
        allocate: gives each plane its memory; None is torch's layout.

    Raises:
        ConfigError: for a pattern that names layers or heads that the model does not have.
    """

    def __init__(
        self,
        model: Configured,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        exact = exact_length(model.config)
        if exact is not None and max_length > exact:
            raise ValueError(f"max_length={max_length}: the model is exact up to {exact} tokens")
        self.model_shape = ModelShape.of(model)
        policy.config.check_model(self.model_shape.num_layers, self.model_shape.num_kv_heads)
        self.policy = policy
        self.rotary = Rotary(cast("PreTrainedModel", model)) if policy.rolling else None
        self.num_slots = num_slots
        self.max_length = max_length
        self.device = model.device
        self.dtype = dtype or model.dtype

        shapes = plane_shapes(policy, self.model_shape, num_slots, max_length)
        place = allocate or (lambda shape: TorchPlane.allocate(shape, self.dtype, self.device))
        self.layers = [LayerSlots(tuple(place(shape) for shape in layer)) for layer in shapes]
        by_index = {plane.shape.budget_index: plane.shape.policy for plane in self.planes}
        policies = tuple(by_index[index] for index in range(len(by_index)))
        self.budgets = [policy.config.budget for policy in policies]
        self._default = SlotPolicies(policies)
        self._policies = [self._default] * num_slots
        self.lengths = [0] * num_slots
        self.sinks = [policy.config.sink] * num_slots

    @property
    def planes(self) -> list[PlaneMemory]:
        """The planes of every layer."""
        return [plane for layer in self.layers for plane in layer.planes]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, mass and positions included."""
        return sum(plane.kv.nbytes for plane in self.planes)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot, mass and positions included."""
        return self.nbytes // self.num_slots

    def dense_nbytes(self, length: int) -> int:
        """Return the bytes that keys and values of `length` tokens take without eviction."""
        shape = self.model_shape
        entries = length * shape.num_layers * shape.num_kv_heads
        return 2 * entries * shape.head_dim * self.dtype.itemsize

    def held(self, slot: int) -> int:
        """Return the entries that a slot holds, as the mean over all layers and KV heads."""
        return self._mean_of_heads(slot, Policy.held)

    def peak(self, slot: int) -> int:
        """Return the most entries that a slot's request has held, as the same mean."""
        return self._mean_of_heads(slot, Policy.capacity)

    def _mean_of_heads(self, slot: int, entries: Callable[[Policy, int], int]) -> int:
        length = self.lengths[slot]
        total = sum(
            len(plane.heads) * entries(self.policy_of(slot, plane), length) for plane in self.planes
        )
        return total // (self.model_shape.num_layers * self.model_shape.num_kv_heads)

    def policy_of(self, slot: int, plane: PlaneMemory) -> Policy:
        """Return the policy that a slot's request has in a plane."""
        return self._policies[slot].by_budget[plane.shape.budget_index]

    def under(self, policy: Policy | None, cap: int | None) -> SlotPolicies:
        """Return what a request does under `policy`, with at most `cap` entries per KV head."""
        if policy is None and cap is None:
            return self._default
        chosen = policy or self.policy
        return SlotPolicies(tuple(chosen.within(budget, cap) for budget in self.budgets))

    def room(self, slot: int) -> int:
        """Return the number of tokens that fit into the slot's current chunk."""
        interval = self.policy.interval
        return interval - self.lengths[slot] % interval

    def reset(
        self,
        slot: int,
        *,
        sink: int | None = None,
        policy: Policy | None = None,
        budget: int | None = None,
    ) -> None:
        """Empty a slot for its next request; old entries are never read again.

        Args:
            sink: first tokens that stay, for example a system prompt; None is the policy's own.
            policy: of this request; None is the slots' own.
            budget: at most so many entries per KV head; None is what each has room for.

        Raises:
            ValueError: when the sinks do not fit into the smallest head with the recent ones, the
                policy's chunks are not the slots', or the slots have no column for its features.
        """
        policies = self.under(policy, budget)
        sink = self.policy.config.sink if sink is None else sink
        limit = policies.max_sink
        if limit is not None and sink > limit:
            raise ValueError(f"slot {slot}: sink={sink}; its heads can protect {limit}")
        if policy is not None and policy.interval != self.policy.interval:
            raise ValueError(
                f"slot {slot}: interval={policy.interval}; the slots' is {self.policy.interval}"
            )
        if policy is not None and policy.has_features and not self.policy.has_features:
            raise ValueError(
                f"slot {slot}: policy {policy.config.name!r} writes features; make the slots with "
                "a policy that has some"
            )
        self._policies[slot] = policies
        self.sinks[slot] = sink
        self.lengths[slot] = 0

    def wipe(self, slot: int) -> None:
        """Zero a slot's memory, so that a NaN in it cannot reach rows that share a step with it."""
        for plane in self.planes:
            for column in plane.kv.columns.values():
                column[slot] = 0

    def save(self, slot: int) -> SlotState:
        """Copy what a slot holds to the CPU, to start another request from."""
        tensors = {
            name: view.to("cpu", copy=True)
            for name, view in self._columns(slot, self.lengths[slot]).items()
        }
        return SlotState(length=self.lengths[slot], sink=self.sinks[slot], tensors=tensors)

    def restore(self, slot: int, state: SlotState) -> None:
        """Put a copy into a slot that was reset for the same policy and sinks."""
        for name, view in self._columns(slot, state.length).items():
            view.copy_(state.tensors[name])
        self.lengths[slot] = state.length
        self.sinks[slot] = state.sink

    def _columns(self, slot: int, length: int) -> dict[str, torch.Tensor]:
        """Return views of what a slot holds after `length` tokens, by plane and column."""
        return {
            f"{index}.{name}": view
            for index, plane in enumerate(self.planes)
            for name, view in plane.columns(slot, self.policy_of(slot, plane).held(length)).items()
        }

    def plan(self, slots: Sequence[int], tokens: Sequence[int]) -> StepPlan:
        """Plan a step of `tokens[i]` tokens for slot `slots[i]`.

        Raises:
            ValueError: when a slot's tokens cross its chunk boundary or exceed `max_length`.
        """
        for slot, n in zip(slots, tokens, strict=True):
            if not 0 < n <= self.room(slot):
                raise ValueError(
                    f"slot {slot}: a step of {n} tokens; its chunk has room for {self.room(slot)}"
                )
            if (length := self.lengths[slot] + n) > self.max_length:
                raise ValueError(
                    f"slot {slot}: {length} tokens exceed max_length={self.max_length}"
                )
        interval, budgets = self.policy.interval, range(len(self.budgets))
        lengths = [self.lengths[slot] for slot in slots]
        rows = [self._policies[slot] for slot in slots]
        return StepPlan(
            slots=list(slots),
            tokens=list(tokens),
            lengths=lengths,
            held=[
                [row.by_budget[i].held(length) for row, length in zip(rows, lengths, strict=True)]
                for i in budgets
            ],
            counts_mass=[[row.counts_mass[i] for row in rows] for i in budgets],
            weights=[
                row.weights(length % interval, n)
                for row, length, n in zip(rows, lengths, tokens, strict=True)
            ],
        )

    @torch.no_grad()
    def commit(self, plan: StepPlan) -> None:
        """Count the step's tokens, and end the chunks that are now complete."""
        complete = []
        for slot, n in zip(plan.slots, plan.tokens, strict=True):
            self.lengths[slot] += n
            if self.lengths[slot] % self.policy.interval == 0:
                complete.append(slot)
        if not complete:
            return
        for index in range(len(self.budgets)):
            for policy, count, slots in self._groups(complete, index):
                ended = torch.tensor(slots, device=self.device)
                lengths = torch.tensor([self.lengths[slot] for slot in slots], device=self.device)
                sinks = torch.tensor([self.sinks[slot] for slot in slots], device=self.device)
                for plane in self.planes:
                    if plane.shape.budget_index == index:
                        end_chunk(plane, policy, count, ended, lengths, sinks)

    def _groups(self, slots: list[int], budget_index: int) -> list[tuple[Policy, int, list[int]]]:
        """Group slots that hold equally many entries under the same policy of a budget."""
        groups: dict[tuple[int, int], tuple[Policy, int, list[int]]] = {}
        for slot in slots:
            policy = self._policies[slot].by_budget[budget_index]
            count = policy.held(self.lengths[slot] - policy.interval) + policy.interval
            groups.setdefault((id(policy), count), (policy, count, []))[2].append(slot)
        return list(groups.values())
