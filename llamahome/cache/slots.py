"""Slots: the KV entries of many requests, allocated once, compacted at chunk boundaries.

A layer's KV heads of equal budget lie together in a *plane*, so budgets may differ by layer and
head without padding, and every shape is static. How many entries a head holds follows from its
budget and the tokens so far alone.

Axes: B rows of a step, G KV heads of a plane, H query heads, T tokens of a step, C capacity,
S entries read, D head_dim, P tokens written (those of all rows, without padding).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from llamahome.attention import Policy, Rotary
from llamahome.cache.plane import LayerSlots, Plane, PlaneShape, PlaneSlots, plane_shapes
from llamahome.cache.snapshots.state import SlotState
from llamahome.cache.step import SlotStep

# How the memory of a plane is laid out, by who computes with it.
Allocate = Callable[[PlaneShape], Plane]


class Step(Protocol):
    """What a forward did: `tokens[i]` tokens for slot `rows[i]`."""

    @property
    def rows(self) -> Sequence[int]: ...
    @property
    def tokens(self) -> Sequence[int]: ...


class Slots:
    """Fixed-size KV memory for `num_slots` requests.

    A forward goes between `begin` and `commit`:

        step = slots.begin(rows, tokens)      # which slots, how many tokens each
        model(ids, position_ids=step.position_ids, hybrid=step)   # writes, attends, adds mass
        slots.commit(step)                    # counts the tokens; compacts full chunks

    A step never crosses a chunk boundary: `room(row)` tells how many tokens fit before the next.

    Args:
        rotary: the model's, for rolling positions.
        allocate: how planes lie in memory; None is torch's layout, in `dtype` on `device`.

    Raises:
        ConfigError: for a pattern that names layers or heads that there are not.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        rotary: Rotary | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        if policy.rolling and rotary is None:
            raise ValueError("policy.positions='rolling' needs the model's rotary embedding")
        policy.config.check_model(num_layers, num_kv_heads)
        self.policy = policy
        self.rotary = rotary if policy.rolling else None
        self.num_slots = num_slots
        self.max_length = max_length
        self.num_kv_heads = num_kv_heads
        self.device = torch.device(device)

        self.dtype = dtype
        self.head_dim = head_dim
        place = allocate or (lambda shape: PlaneSlots.allocate(shape, dtype, device))
        shapes = plane_shapes(
            policy, num_layers, num_kv_heads, num_slots, max_length=max_length, head_dim=head_dim
        )
        self.layers = [LayerSlots(tuple(place(shape) for shape in layer)) for layer in shapes]
        budgets = {plane.policy.config.budget for plane in self.planes}
        self.budgets = sorted(budgets, key=lambda budget: (budget is None, budget))
        self._default = {plane.policy.config.budget: plane.policy for plane in self.planes}
        self._of_row = [self._default] * num_slots
        self.max_sink = self.max_sink_under(self._default)
        self.lengths = [0] * num_slots
        self.sinks = [policy.config.sink] * num_slots

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        allocate: Allocate | None = None,
    ) -> Slots:
        """Slots of a model's shape and device; of its dtype, too, unless `dtype` says otherwise."""
        config = model.config
        head_dim = getattr(config, "head_dim", None)
        return cls(
            policy,
            num_slots=num_slots,
            max_length=max_length,
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            dtype=dtype or model.dtype,
            device=model.device,
            rotary=Rotary(model) if policy.rolling else None,
            allocate=allocate,
        )

    @property
    def planes(self) -> list[Plane]:
        """Those of every layer."""
        return [plane for layer in self.layers for plane in layer.planes]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, mass and positions included."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot, mass and positions included."""
        return self.nbytes // self.num_slots

    def dense_nbytes(self, length: int) -> int:
        """Bytes that keys and values of `length` tokens take without eviction."""
        heads = self.num_kv_heads * len(self.layers)
        return 2 * heads * length * self.head_dim * self.dtype.itemsize

    def held(self, row: int) -> int:
        """Entries that a slot holds, as the mean over all layers and KV heads."""
        length = self.lengths[row]
        total = sum(
            len(plane.heads) * self.policy_of(row, plane).held(length) for plane in self.planes
        )
        return total // (self.num_kv_heads * len(self.layers))

    def policy_of(self, row: int, plane: Plane) -> Policy:
        """Under which a slot's request lives in a plane."""
        return self._of_row[row][plane.policy.config.budget]

    def policies_of(self, row: int) -> dict[int | None, Policy]:
        """The same by the plane's own budget."""
        return self._of_row[row]

    def under(self, policy: Policy | None, cap: int | None) -> dict[int | None, Policy]:
        """By a plane's budget, what a request does there under `policy`, with at most `cap`."""
        if policy is None and cap is None:
            return self._default
        chosen = policy or self.policy
        return {budget: chosen.within(budget, cap) for budget in self.budgets}

    def peak(self, row: int) -> int:
        """Entries that a slot's request has held at most, as the mean over layers and KV heads."""
        length = self.lengths[row]
        total = sum(
            len(plane.heads) * self.policy_of(row, plane).capacity(length) for plane in self.planes
        )
        return total // (self.num_kv_heads * len(self.layers))

    def room(self, row: int) -> int:
        """Tokens that fit into the slot's current chunk."""
        interval = self.policy.interval
        return interval - self.lengths[row] % interval

    def reset(
        self,
        row: int,
        *,
        sink: int | None = None,
        policy: Policy | None = None,
        budget: int | None = None,
    ) -> None:
        """Empty a slot for its next request; old entries are never read again.

        Args:
            sink: first tokens that stay, where more than the policy's own, say a system prompt.
            policy: of this request; None is the slots' own.
            budget: at most so many entries per KV head; None is what each has slots for.

        Raises:
            ValueError: when the sinks do not fit into the smallest head beside the recent ones, or
                the policy's chunks are not the slots'.
        """
        by_budget = self.under(policy, budget)
        sink = self.policy.config.sink if sink is None else sink
        limit = self.max_sink_under(by_budget)
        if limit is not None and sink > limit:
            raise ValueError(f"slot {row}: sink={sink}; its heads can protect {limit}")
        if policy is not None and policy.interval != self.policy.interval:
            raise ValueError(
                f"slot {row}: interval={policy.interval}; the slots' is {self.policy.interval}"
            )
        self._of_row[row] = by_budget
        self.sinks[row] = sink
        self.lengths[row] = 0

    @staticmethod
    def max_sink_under(by_budget: dict[int | None, Policy]) -> int | None:
        """First tokens that the smallest head can protect; None when nothing evicts."""
        room = [
            policy.config.budget - policy.config.recent
            for policy in by_budget.values()
            if policy.config.budget is not None
        ]
        return min(room, default=None)

    def wipe(self, row: int) -> None:
        """Forget what a slot holds for good: a NaN in it would reach who shares a step with it."""
        for plane in self.planes:
            plane.wipe(row)

    def save(self, row: int) -> SlotState:
        """A copy of what a slot holds, to start another request from."""
        length = self.lengths[row]
        tensors = {}
        for index, plane in enumerate(self.planes):
            count = self.policy_of(row, plane).held(length)
            for name, tensor in plane.save(row, count).items():
                tensors[f"{index}.{name}"] = tensor
        return SlotState(length=length, sink=self.sinks[row], tensors=tensors)

    def restore(self, row: int, state: SlotState) -> None:
        """Put a copy into a slot that was reset for the same policy and sinks."""
        for index, plane in enumerate(self.planes):
            prefix = f"{index}."
            plane.restore(
                row,
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in state.tensors.items()
                    if name.startswith(prefix)
                },
            )
        self.lengths[row] = state.length
        self.sinks[row] = state.sink

    def check(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Raise ValueError where a row's tokens cross its chunk boundary or exceed `max_length`."""
        for row, n in zip(rows, tokens, strict=True):
            if not 0 < n <= self.room(row):
                raise ValueError(
                    f"slot {row}: a step of {n} tokens; its chunk has room for {self.room(row)}"
                )
            if self.lengths[row] + n > self.max_length:
                length = self.lengths[row] + n
                raise ValueError(f"slot {row}: {length} tokens exceed max_length={self.max_length}")

    def begin(self, rows: Sequence[int], tokens: Sequence[int]) -> SlotStep:
        """Open a step of `tokens[i]` tokens for slot `rows[i]`.

        Raises:
            ValueError: when a row's tokens cross its chunk boundary or exceed `max_length`.
        """
        self.check(rows, tokens)
        return SlotStep(self, list(rows), list(tokens))

    @torch.no_grad()
    def commit(self, step: Step) -> None:
        """Count the step's tokens, and compact the slots whose chunk is now complete."""
        complete = []
        for row, n in zip(step.rows, step.tokens, strict=True):
            self.lengths[row] += n
            if self.lengths[row] % self.policy.interval == 0:
                complete.append(row)
        if complete:
            for plane in self.planes:
                self._end_chunk(plane, complete)

    def _end_chunk(self, plane: Plane, rows: list[int]) -> None:
        """Rows that hold equally much under the same policy go together."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        policies: dict[int, Policy] = {}
        for row in rows:
            policy = self.policy_of(row, plane)
            held = policy.held(self.lengths[row] - policy.interval) + policy.interval
            policies[id(policy)] = policy
            alike[id(policy), held].append(row)
        for (key, count), same in alike.items():
            policy = policies[key]
            if policy.scorer is None:
                continue
            index = torch.tensor(same, device=self.device)
            kept = policy.kept(count)
            if kept < count:
                lengths = torch.tensor([self.lengths[row] for row in same], device=self.device)
                sinks = torch.tensor([self.sinks[row] for row in same], device=self.device)
                plane.compact(index, count, policy, lengths, sinks)
            if policy.mass is not None and policy.mass.carry != 1:
                plane.mass[index, :, :kept] *= policy.mass.carry
