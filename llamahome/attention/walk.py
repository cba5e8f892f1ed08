"""The chunk walk: attention of some KV heads over a whole sequence under one budget.

Axes: B batch, H query heads, G KV heads, N tokens, C chunks, T tokens of a chunk, S keys, K kept
keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.entries import Entries
from llamahome.attention.policy import Policy
from llamahome.attention.rotary import Rotary

TOGETHER = 2**24  # elements that the backward pass computes with at a time


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Everything that a walk depends on except the tensors.

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
        """Compute causal attention without eviction: (B, H, N, D)."""
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
        """Yield the chunks of a sequence, the last of which may be shorter."""
        for start in range(0, length, self.policy.interval):
            yield slice(start, min(start + self.policy.interval, length))

    def features(self, key: Tensor, value: Tensor) -> Tensor | None:
        """Compute the features of all entries, (B, G, N), with gradient to the scorer's weights.

        The model learns nothing through them: keys and values are detached.
        """
        scorer = self.policy.scorer
        if scorer is None or scorer.features is None:
            return None
        return scorer.features(self._entries(key.detach(), value.detach()))

    def attend_chunk(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        with_mass: bool,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with a chunk's queries (B, H, T, D) to what is held: (B, G, S, D).

        Args:
            key, value: kept entries first, then the chunk itself.
            with_mass: whether to return the mass that the policy asks for.
            bias: (B, G, K), added to the logits of the kept entries.
        """
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
            bias=None if bias is None else F.pad(bias, (0, queries)),
        )

    @torch.no_grad()
    def run(
        self, query: Tensor, key: Tensor, value: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Walk the sequence.

        Args:
            features: (B, G, N), what `features` computes; None for a policy without.

        Returns:
            The output (B, H, N, D), and for each chunk the positions that were kept from before
            it, (B, G, K) with K at most the budget.
        """
        length = query.shape[2]
        whole = self._entries(key, value, features)
        held = whole.part(slice(0, 0))
        outputs, kept = [], []
        for chunk in self.chunks(length):
            kept.append(held.positions)
            held = held.joined(whole.part(chunk))
            out, mass = self.attend_chunk(
                query[:, :, chunk], held.keys, held.values, with_mass=True
            )
            outputs.append(out)
            if chunk.stop < length:
                held = self._compact(held, mass, chunk.stop)
        return torch.cat(outputs, dim=2), kept

    def surrogate(self, features: Tensor, ages: Tensor) -> Tensor | None:
        """Compute the scorer's surrogate for entries of these ages: (B, G, K) all."""
        scorer = self.policy.scorer
        if scorer is None or scorer.surrogate is None:
            return None
        return scorer.surrogate(features, ages)

    def _entries(self, key: Tensor, value: Tensor, features: Tensor | None = None) -> Entries:
        """Wrap the keys and values of a sequence, (B, G, N, D), that have no mass yet."""
        wide = torch.promote_types(key.dtype, torch.float32)
        positions = torch.arange(key.shape[2], device=key.device)
        return Entries(
            keys=key,
            values=value,
            mass=torch.zeros(key.shape[:3], dtype=wide, device=key.device),
            positions=positions.expand(key.shape[:3]),
            layer_idx=self.layer_idx,
            heads=self.heads,
            features=features,
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
    """Return `walk.run`'s output, differentiable once; chunks are recomputed on the way back.

    Which positions stay is decided going forward, without gradient; weights of the policy have the
    gradient of its surrogate. Only the inputs and those positions are saved for the backward pass.
    It attends with many chunks of one size at a time, as far as they take `TOGETHER` elements, so
    memory does not grow with the sequence.
    """
    out: Tensor = _ChunkCheckpoint.apply(  # type: ignore[no-untyped-call]
        query, key, value, walk.features(key, value), walk
    )
    return out


class _ChunkCheckpoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, features: Tensor | None, walk: Walk
    ) -> Tensor:
        out, kept = walk.run(query, key, value, features)
        ctx.walk = walk
        # Positions in 32 bits: there are N / interval x budget of them for each head.
        ctx.save_for_backward(query, key, value, features, *(p.int() for p in kept))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, features, *kept = ctx.saved_tensors
        walk: Walk = ctx.walk
        # A key takes gradients from many chunks: they add up in at least 32 bits.
        wide = torch.promote_types(key.dtype, torch.float32)
        query_grad = torch.empty_like(query)
        key_grad = torch.zeros_like(key, dtype=wide)
        value_grad = torch.zeros_like(value, dtype=wide)
        feature_grad: Any = None if features is None else torch.zeros_like(features)
        for group in _groups(walk, query, kept):
            parts = [
                group.own(query),
                torch.cat([group.kept(key), group.own(key)], dim=2),
                torch.cat([group.kept(value), group.own(value)], dim=2),
            ]
            own = None if features is None else group.kept(features).requires_grad_()
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in parts]
                bias = None if own is None else walk.surrogate(own, group.ages)
                out, _ = walk.attend_chunk(*leaves, with_mass=False, bias=bias)
            wanted = leaves if bias is None or own is None else [*leaves, own]
            of_query, of_key, of_value, *of_features = torch.autograd.grad(
                out, wanted, group.own(grad_out)
            )
            query_grad[:, :, group.span] = group.in_sequence(of_query)
            for total, part in ((key_grad, of_key), (value_grad, of_value)):
                group.add_kept(total, part[:, :, : group.count].to(wide))
                total[:, :, group.span] += group.in_sequence(part[:, :, group.count :])
            for part in of_features:
                group.add_kept(feature_grad, part)
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), feature_grad, None


@dataclass(frozen=True)
class _Group:
    """C consecutive chunks of equal size, which attend as C times as many sequences: (B * C, ...).

    Attributes:
        span: their tokens.
        positions: (B, G, C, K) int64, kept before each.
    """

    span: slice
    positions: Tensor

    @property
    def count(self) -> int:
        """Entries kept before each chunk."""
        return self._shape[1]

    @property
    def _shape(self) -> tuple[int, int]:
        """C and K."""
        return self.positions.shape[2], self.positions.shape[3]

    @property
    def ages(self) -> Tensor:
        """Tokens from each kept entry to the start of its chunk: (B * C, G, K)."""
        chunks = self._shape[0]
        length = (self.span.stop - self.span.start) // chunks
        starts = self.span.start + length * torch.arange(chunks, device=self.positions.device)
        return self._apart(starts[:, None] - self.positions)

    def own(self, column: Tensor) -> Tensor:
        """Return the chunks' own part of (B, *, N, ...)."""
        return self._apart(column[:, :, self.span].unflatten(2, (self._shape[0], -1)))

    def kept(self, column: Tensor) -> Tensor:
        """Return the kept entries of (B, G, N, ...)."""
        return self._apart(column.gather(2, self._index(column)).unflatten(2, self._shape))

    def add_kept(self, total: Tensor, part: Tensor) -> None:
        """Add what `kept` would return to the entries of `total` that it would come from."""
        total.scatter_add_(2, self._index(total), self.in_sequence(part))

    def in_sequence(self, part: Tensor) -> Tensor:
        """Put chunks (B * C, *, T, ...) one after another: (B, *, C * T, ...)."""
        apart: Tensor = part.unflatten(0, (-1, self._shape[0]))
        return apart.transpose(1, 2).flatten(2, 3)

    def _apart(self, parts: Tensor) -> Tensor:
        return parts.transpose(1, 2).flatten(0, 1)

    def _index(self, column: Tensor) -> Tensor:
        flat = self.positions.flatten(2)
        return flat if column.dim() == 3 else flat.unsqueeze(-1).expand(-1, -1, -1, column.shape[3])


def _groups(walk: Walk, query: Tensor, kept: Sequence[Tensor]) -> Iterator[_Group]:
    """Group the chunks of a sequence, given the positions (B, G, K) kept before each."""
    batch, heads, length, dim = query.shape
    work = zip(walk.chunks(length), kept, strict=True)
    for (tokens, count), alike in groupby(work, lambda c: (c[0].stop - c[0].start, c[1].shape[2])):
        held = tokens + count
        # A mask for each query head, and keys, values and both gradients for each KV head.
        elements = batch * held * (heads * tokens + 4 * len(walk.heads) * dim)
        group = list(alike)
        size = max(1, TOGETHER // elements)
        for first in range(0, len(group), size):
            chunks = group[first : first + size]
            span = slice(chunks[0][0].start, chunks[-1][0].stop)
            yield _Group(span, torch.stack([place for _, place in chunks], dim=2).long())
