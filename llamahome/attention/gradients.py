"""The chunk walk with gradients.

Axes: B batch, H query heads, G KV heads, N tokens, C chunks, T tokens of a chunk, K kept keys,
D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from llamahome.attention.native_walk import native_gradients
from llamahome.attention.once import once
from llamahome.attention.walk import Walk, Walked

TOGETHER = 2**24  # elements that torch attends with at a time on the way back


def walk_with_gradients(query: Tensor, key: Tensor, value: Tensor, walk: Walk) -> Tensor:
    """Return `walk.run`'s output, differentiable once; probabilities are computed twice.

    Which positions stay is decided going forward, without gradient; weights of the policy have the
    gradient of its surrogate. Saved for the backward pass are the inputs, those positions and, for
    the kernels, the output and one number per query. torch attends with many chunks of one size at
    a time, as far as they take `TOGETHER` elements, so memory does not grow with the sequence.
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
        walked: Walked = once(lambda: _in_short(walk.run(query, key, value, features)))
        ctx.walk = walk
        out = None if walked.lse is None else walked.out
        ctx.save_for_backward(query, key, value, features, out, walked.lse, *walked.kept)
        return walked.out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, features, out, lse, *kept = ctx.saved_tensors
        inputs = (query, key, value)
        if lse is None:
            return *_by_torch(ctx.walk, inputs, features, kept, grad_out), None
        biased = _Biased.of(ctx.walk, features, kept)
        if biased is not None and bool(biased.bias.any()):
            # Other probabilities than those going forward.
            return *_by_torch(ctx.walk, inputs, features, kept, grad_out), None
        *gradients, of_bias = native_gradients(
            inputs,
            grad_out,
            out,
            lse,
            kept,
            interval=ctx.walk.policy.interval,
            scaling=ctx.walk.scaling,
            with_bias=biased is not None,
        )
        of_features = None if features is None else torch.zeros_like(features)
        if biased is not None:
            of_features = biased.gradient(of_bias, features)
        of_query, of_key, of_value = gradients
        return of_query, of_key, of_value, of_features, None


def _in_short(walked: Walked) -> Walked:
    """Store positions in 32 bits: there are N / interval x budget of them for each head."""
    return walked._replace(kept=[positions.int() for positions in walked.kept])


@dataclass(frozen=True)
class _Biased:
    """The surrogate of everything that was kept, one chunk after another.

    Attributes:
        positions: (B, G, all K) int64.
        own: their features, and `bias` what the surrogate makes of them.
    """

    positions: Tensor
    own: Tensor
    bias: Tensor

    @classmethod
    def of(cls, walk: Walk, features: Tensor | None, kept: Sequence[Tensor]) -> _Biased | None:
        """Compute the surrogate of features (B, G, N); None for a policy without."""
        if features is None:
            return None
        positions = torch.cat(list(kept), dim=2).long()
        counts = torch.tensor([places.shape[2] for places in kept], device=positions.device)
        starts = torch.arange(len(kept), device=positions.device) * walk.policy.interval
        own = features.gather(2, positions).requires_grad_()
        with torch.enable_grad():
            bias = walk.surrogate(own, starts.repeat_interleave(counts) - positions)
        return None if bias is None else cls(positions, own, bias)

    def gradient(self, of_bias: Tensor, features: Tensor) -> Tensor:
        """Return the gradient of `features` from that of the bias."""
        (of_own,) = torch.autograd.grad(self.bias, self.own, of_bias.to(self.bias.dtype))
        return torch.zeros_like(features).scatter_add_(2, self.positions, of_own)


def _by_torch(
    walk: Walk,
    inputs: tuple[Tensor, Tensor, Tensor],
    features: Tensor | None,
    kept: Sequence[Tensor],
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the gradients of the inputs and features, many chunks at a time."""
    query, key, value = inputs
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
    return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), feature_grad


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
