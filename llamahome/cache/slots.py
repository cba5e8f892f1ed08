"""Slots: the KV entries of many requests, allocated once, compacted at chunk boundaries.

A layer's KV heads of equal budget lie together in a *plane*, so budgets may differ by layer and
head without padding, and every shape is static. How many entries a head holds follows from its
budget and the tokens so far alone.

Axes: B rows of a step, G KV heads of a plane, H query heads, T tokens of a step, C capacity,
S entries read, D head_dim, P tokens written (those of all rows, without padding).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from llamahome.attention import Policy, Rotary
from llamahome.cache.plane import LayerSlots, PlaneSlots
from llamahome.cache.step import SlotStep


class Slots:
    """Fixed-size KV memory for `num_slots` requests.

    A forward goes between `begin` and `commit`:

        step = slots.begin(rows, tokens)      # which slots, how many tokens each
        model(ids, position_ids=step.position_ids, hybrid=step)   # writes, attends, adds mass
        slots.commit(step)                    # counts the tokens; compacts full chunks

    A step never crosses a chunk boundary: `room(row)` tells how many tokens fit before the next.

    Args:
        rotary: the model's, for rolling positions.

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
    ) -> None:
        if policy.rolling and rotary is None:
            raise ValueError("policy.positions='rolling' needs the model's rotary embedding")
        policy.config.check_model(num_layers, num_kv_heads)
        self.policy = policy
        self.rotary = rotary if policy.rolling else None
        self.num_slots = num_slots
        self.max_length = max_length
        self.num_kv_heads = num_kv_heads
        self.max_sink = policy.max_sink(num_layers, num_kv_heads)
        self.device = torch.device(device)

        def allocate(heads: tuple[int, ...], policy: Policy) -> PlaneSlots:
            shape = (num_slots, len(heads), policy.capacity(max_length))
            return PlaneSlots(
                heads=heads,
                policy=policy,
                keys=torch.zeros(*shape, head_dim, dtype=dtype, device=device),
                values=torch.zeros(*shape, head_dim, dtype=dtype, device=device),
                mass=torch.zeros(
                    shape, dtype=torch.promote_types(dtype, torch.float32), device=device
                ),
                positions=torch.zeros(shape, dtype=torch.int64, device=device),
            )

        self.layers = [
            LayerSlots(
                tuple(
                    allocate(plane.heads, plane.policy)
                    for plane in policy.planes(layer_idx, num_layers, num_kv_heads)
                )
            )
            for layer_idx in range(num_layers)
        ]
        self.lengths = [0] * num_slots
        self.sinks = [policy.config.sink] * num_slots

    @classmethod
    def for_model(
        cls, model: PreTrainedModel, policy: Policy, *, num_slots: int, max_length: int
    ) -> Slots:
        """Slots of a model's shape, dtype and device."""
        config = model.config
        head_dim = getattr(config, "head_dim", None)
        return cls(
            policy,
            num_slots=num_slots,
            max_length=max_length,
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            dtype=model.dtype,
            device=model.device,
            rotary=Rotary(model) if policy.rolling else None,
        )

    @property
    def planes(self) -> list[PlaneSlots]:
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
        first = self.planes[0].keys
        heads = self.num_kv_heads * len(self.layers)
        return 2 * heads * length * first.shape[-1] * first.element_size()

    def held(self, row: int) -> int:
        """Entries that a slot holds, as the mean over all layers and KV heads."""
        length = self.lengths[row]
        total = sum(len(plane.heads) * plane.policy.held(length) for plane in self.planes)
        return total // (self.num_kv_heads * len(self.layers))

    def room(self, row: int) -> int:
        """Tokens that fit into the slot's current chunk."""
        interval = self.policy.interval
        return interval - self.lengths[row] % interval

    def reset(self, row: int, *, sink: int | None = None) -> None:
        """Empty a slot for its next request; old entries are never read again.

        Args:
            sink: first tokens that stay, where more than the policy's own, say a system prompt.

        Raises:
            ValueError: when they do not fit into the smallest head beside the recent ones.
        """
        sink = self.policy.config.sink if sink is None else sink
        if self.max_sink is not None and sink > self.max_sink:
            raise ValueError(f"slot {row}: sink={sink}; its heads can protect {self.max_sink}")
        self.sinks[row] = sink
        self.lengths[row] = 0

    def begin(self, rows: Sequence[int], tokens: Sequence[int]) -> SlotStep:
        """Open a step of `tokens[i]` tokens for slot `rows[i]`.

        Raises:
            ValueError: when a row's tokens cross its chunk boundary or exceed `max_length`.
        """
        for row, n in zip(rows, tokens, strict=True):
            if not 0 < n <= self.room(row):
                raise ValueError(
                    f"slot {row}: a step of {n} tokens; its chunk has room for {self.room(row)}"
                )
            if self.lengths[row] + n > self.max_length:
                length = self.lengths[row] + n
                raise ValueError(f"slot {row}: {length} tokens exceed max_length={self.max_length}")
        return SlotStep(self, list(rows), list(tokens))

    @torch.no_grad()
    def commit(self, step: SlotStep) -> None:
        """Count the step's tokens, and compact the slots whose chunk is now complete."""
        complete = []
        for row, n in zip(step.rows, step.tokens, strict=True):
            self.lengths[row] += n
            if self.lengths[row] % self.policy.interval == 0:
                complete.append(row)
        if not complete or self.policy.score is None:
            return
        for layer_idx, layer in enumerate(self.layers):
            for plane in layer.planes:
                self._end_chunk(plane, layer_idx, complete)

    def _end_chunk(self, plane: PlaneSlots, layer_idx: int, rows: list[int]) -> None:
        policy, interval = plane.policy, self.policy.interval
        by_count: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_count[policy.held(self.lengths[row] - interval) + interval].append(row)
        for count, same in by_count.items():
            index = torch.tensor(same, device=self.device)
            kept = policy.kept(count)
            if kept < count:
                held = plane.entries(index, count, layer_idx)
                lengths = torch.tensor([self.lengths[row] for row in same], device=self.device)
                sinks = torch.tensor([self.sinks[row] for row in same], device=self.device)
                plane.store(index, held.take(policy.select(held, lengths, sinks)))
            if policy.mass is not None and policy.mass.carry != 1:
                plane.mass[index, :, :kept] *= policy.mass.carry
