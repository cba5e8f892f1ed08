"""Slots: the KV entries of many requests, allocated once, compacted at chunk boundaries.

Axes: B rows of a step, G KV heads, H query heads, T tokens of a step, C capacity, S entries read,
D head_dim, P tokens written (those of all rows, without padding).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Entries, Policy, attend


@dataclass(frozen=True)
class LayerSlots:
    """One layer's entries of every slot: keys, values (slots, G, C, D); the others without D."""

    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.keys, self.values, self.mass, self.positions))


class Slots:
    """Fixed-size KV memory for `num_slots` requests.

    A forward goes between `begin` and `commit`:

        step = slots.begin(rows, tokens)      # which slots, how many tokens each
        model(ids, hybrid=step)               # writes, attends, adds mass
        slots.commit(step)                    # counts the tokens; compacts full chunks

    A step never crosses a chunk boundary: `room(row)` tells how many tokens fit before the next.
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
    ) -> None:
        self.policy = policy
        self.num_slots = num_slots
        self.max_length = max_length
        self.capacity = policy.capacity(max_length)
        shape = (num_slots, num_kv_heads, self.capacity)
        mass_dtype = torch.promote_types(dtype, torch.float32)
        self.layers = [
            LayerSlots(
                keys=torch.zeros(*shape, head_dim, dtype=dtype, device=device),
                values=torch.zeros(*shape, head_dim, dtype=dtype, device=device),
                mass=torch.zeros(shape, dtype=mass_dtype, device=device),
                positions=torch.zeros(shape, dtype=torch.int64, device=device),
            )
            for _ in range(num_layers)
        ]
        self.device = torch.device(device)
        # Every head of every layer holds as many entries, so one count per slot tells all.
        self.counts = [0] * num_slots
        self.lengths = [0] * num_slots

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
        )

    @property
    def nbytes(self) -> int:
        """Bytes allocated, mass and positions included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot, mass and positions included."""
        return self.nbytes // self.num_slots

    def dense_nbytes(self, length: int) -> int:
        """Bytes that keys and values of `length` tokens take without eviction."""
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        return stored // (self.num_slots * self.capacity) * length

    def room(self, row: int) -> int:
        """Tokens that fit into the slot's current chunk."""
        interval = self.policy.interval
        return interval - self.lengths[row] % interval

    def reset(self, row: int) -> None:
        """Empty a slot for its next request; old entries are never read again."""
        self.counts[row] = 0
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
        full: dict[int, list[int]] = defaultdict(list)
        for row, n in zip(step.rows, step.tokens, strict=True):
            self.counts[row] += n
            self.lengths[row] += n
            complete = self.lengths[row] % self.policy.interval == 0
            if complete and self.policy.kept(self.counts[row]) < self.counts[row]:
                full[self.counts[row]].append(row)
        for count, rows in full.items():
            self._compact(rows, count)

    def _compact(self, rows: list[int], count: int) -> None:
        index = torch.tensor(rows, device=self.device)
        length = torch.tensor([self.lengths[row] for row in rows], device=self.device)
        kept = self.policy.kept(count)
        for layer_idx, layer in enumerate(self.layers):
            held = Entries(
                keys=layer.keys[index, :, :count],
                values=layer.values[index, :, :count],
                mass=layer.mass[index, :, :count],
                positions=layer.positions[index, :, :count],
                layer_idx=layer_idx,
            )
            keep = self.policy.select(held, length)
            wide = keep.unsqueeze(-1).expand(-1, -1, -1, held.keys.shape[-1])
            layer.keys[index, :, :kept] = held.keys.gather(2, wide)
            layer.values[index, :, :kept] = held.values.gather(2, wide)
            layer.mass[index, :, :kept] = held.mass.gather(2, keep)
            layer.positions[index, :, :kept] = held.positions.gather(2, keep)
        for row in rows:
            self.counts[row] = kept


class SlotStep:
    """One forward over some slots; a model takes it as `hybrid=`. Open it with `Slots.begin`.

    Rows may bring different numbers of tokens, padded on the right to the longest.
    """

    def __init__(self, slots: Slots, rows: list[int], tokens: list[int]) -> None:
        self.slots = slots
        self.rows = rows
        self.tokens = tokens
        device = slots.device
        longest = max(tokens)
        counts = torch.tensor([slots.counts[r] for r in rows], device=device)
        lengths = torch.tensor([slots.lengths[r] for r in rows], device=device)
        offsets = torch.arange(longest, device=device)
        self.position_ids = lengths[:, None] + offsets  # (B, T)
        self._real = offsets < torch.tensor(tokens, device=device)[:, None]  # (B, T)
        self._read = max(slots.counts[r] + n for r, n in zip(rows, tokens, strict=True))
        ends = counts[:, None] + offsets + 1
        self._visible = torch.arange(self._read, device=device) < ends[..., None]  # (B, T, S)
        self._index = torch.tensor(rows, device=device)
        self._adjacent = rows == list(range(rows[0], rows[0] + len(rows)))
        row_of, token_of = self._real.nonzero(as_tuple=True)
        self._source = (row_of, token_of)
        self._target_slot = self._index[row_of]
        self._target_entry = counts[row_of] + token_of
        self._target_position = self.position_ids[row_of, token_of]

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Write the step's keys (B, G, T, D) and values, and attend: (B, H, T, D)."""
        layer = self.slots.layers[layer_idx]
        self._write(layer, key, value)
        needs_mass = self.slots.policy.needs_mass
        out, mass = attend(
            query,
            self._rows_of(layer.keys),
            self._rows_of(layer.values),
            self._visible,
            scaling,
            counted=self._real if needs_mass else None,
        )
        if mass is not None:
            layer.mass[:, :, : self._read].index_add_(0, self._index, mass)
        return out

    def _write(self, layer: LayerSlots, key: Tensor, value: Tensor) -> None:
        at = (self._target_slot, slice(None), self._target_entry)
        row_of, token_of = self._source
        layer.keys[at] = key[row_of, :, token_of].to(layer.keys.dtype)  # (P, G, D)
        layer.values[at] = value[row_of, :, token_of].to(layer.values.dtype)
        layer.mass[at] = 0.0
        layer.positions[at] = self._target_position[:, None]

    def _rows_of(self, stored: Tensor) -> Tensor:
        """(B, G, S, D) of the step's rows; a view, not a copy, where the rows lie side by side."""
        read = stored[:, :, : self._read]
        if self._adjacent:
            return read[self.rows[0] : self.rows[0] + len(self.rows)]
        return read.index_select(0, self._index)
