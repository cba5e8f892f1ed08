"""The chunk walk: attention of some KV heads over a whole sequence under one budget.

Axes: B batch, H query heads, G KV heads, N tokens, T tokens of a chunk, S keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.entries import Entries
from llamahome.attention.policy import Policy
from llamahome.attention.rotary import Rotary


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk depends on beside the tensors.

    Attributes:
        policy: of one budget, which every head of the walk keeps.
        layer_idx, heads: which KV heads these are.
        scaling: factor on the logits.
        rotary: set for rolling positions: keys come unrotated.
    """

    policy: Policy
    layer_idx: int
    heads: tuple[int, ...]
    scaling: float
    rotary: Rotary | None

    def dense(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention without eviction: (B, H, N, D)."""
        if self.rotary is not None:
            positions = torch.arange(query.shape[2], device=query.device)[None]
            query, key = self.rotary(query, positions), self.rotary(key, positions)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=self.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def chunks(self, length: int) -> Iterator[slice]:
        for start in range(0, length, self.policy.interval):
            yield slice(start, min(start + self.policy.interval, length))

    def attend_chunk(
        self, query: Tensor, key: Tensor, value: Tensor, *, with_mass: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A chunk's queries (B, H, T, D) over what is held, the chunk itself last: (B, G, S, D)."""
        queries, keys = query.shape[2], key.shape[2]
        offsets = torch.arange(queries, device=query.device)
        seen = torch.arange(keys, device=query.device)
        if self.rotary is not None:
            query = self.rotary(query, (keys - queries + offsets)[None])
            key = self.rotary(key, seen[None])
        visible = seen <= (keys - queries + offsets)[:, None]
        mass = self.policy.mass if with_mass else None
        return attend(
            query,
            key,
            value,
            visible.unsqueeze(0),
            self.scaling,
            counted=None if mass is None else mass.at(offsets)[None],
            group="sum" if mass is None else mass.group,
        )

    @torch.no_grad()
    def run(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Walk the sequence.

        Returns:
            The output (B, H, N, D), and for each chunk the positions that were kept from before
            it, (B, G, K) with K at most the budget.
        """
        length = query.shape[2]
        held = self._nothing_yet(key, value)
        outputs, kept = [], []
        for chunk in self.chunks(length):
            kept.append(held.positions)
            held = self._append(held, key[:, :, chunk], value[:, :, chunk], chunk.start)
            out, mass = self.attend_chunk(
                query[:, :, chunk], held.keys, held.values, with_mass=True
            )
            outputs.append(out)
            if chunk.stop < length:
                held = self._compact(held, mass, chunk.stop)
        return torch.cat(outputs, dim=2), kept

    def _nothing_yet(self, key: Tensor, value: Tensor) -> Entries:
        wide = torch.promote_types(key.dtype, torch.float32)
        none = key[:, :, :0, 0]
        return Entries(
            keys=key[:, :, :0],
            values=value[:, :, :0],
            mass=none.to(wide),
            positions=none.to(torch.int64),
            layer_idx=self.layer_idx,
            heads=self.heads,
        )

    def _append(self, held: Entries, key: Tensor, value: Tensor, start: int) -> Entries:
        batch, groups, tokens, _ = key.shape
        positions = torch.arange(start, start + tokens, device=key.device)
        return replace(
            held,
            keys=torch.cat([held.keys, key], dim=2),
            values=torch.cat([held.values, value], dim=2),
            mass=F.pad(held.mass, (0, tokens)),
            positions=torch.cat([held.positions, positions.expand(batch, groups, -1)], dim=2),
        )

    def _compact(self, held: Entries, mass: Tensor | None, length: int) -> Entries:
        if mass is not None:
            held = replace(held, mass=held.mass + mass)
        if self.policy.kept(held.keys.shape[2]) < held.keys.shape[2]:
            held = held.take(self.policy.select(held, length))
        if self.policy.mass is not None:
            held = replace(held, mass=held.mass * self.policy.mass.carry)
        return held


def walk_with_gradients(query: Tensor, key: Tensor, value: Tensor, walk: Walk) -> Tensor:
    """`walk.run`'s output, differentiable once, each chunk computed again on the way back.

    Which positions stay is decided going forward, without gradient. Nothing but the inputs and
    those positions is kept for the backward pass, so beside them memory is that of one chunk:
    interval x (budget + interval) probabilities a head, however long the sequence.
    """
    out: Tensor = _ChunkCheckpoint.apply(query, key, value, walk)  # type: ignore[no-untyped-call]
    return out


class _ChunkCheckpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, walk: Walk) -> Tensor:
        out, kept = walk.run(query, key, value)
        ctx.walk = walk
        # Positions in 32 bits: there are N / interval x budget of them for each head.
        ctx.save_for_backward(query, key, value, *(positions.int() for positions in kept))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        walk: Walk = ctx.walk
        # A key takes gradients from many chunks: they add up in at least 32 bits.
        wide = torch.promote_types(key.dtype, torch.float32)
        query_grad = torch.empty_like(query)
        key_grad = torch.zeros_like(key, dtype=wide)
        value_grad = torch.zeros_like(value, dtype=wide)
        for chunk, positions in zip(walk.chunks(query.shape[2]), kept, strict=True):
            index = positions.long().unsqueeze(-1).expand(-1, -1, -1, key.shape[-1])
            parts = [
                query[:, :, chunk],
                torch.cat([key.gather(2, index), key[:, :, chunk]], dim=2),
                torch.cat([value.gather(2, index), value[:, :, chunk]], dim=2),
            ]
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in parts]
                out, _ = walk.attend_chunk(*leaves, with_mass=False)
            of_query, of_key, of_value = torch.autograd.grad(out, leaves, grad_out[:, :, chunk])
            query_grad[:, :, chunk] = of_query
            count = index.shape[2]
            for total, part in ((key_grad, of_key), (value_grad, of_value)):
                total.scatter_add_(2, index, part[:, :, :count].to(wide))
                total[:, :, chunk] += part[:, :, count:]
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), None
