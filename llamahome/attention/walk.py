"""The chunk walk: attention of some KV heads over a whole sequence under one budget.

Axes: B batch, H query heads, G KV heads, N tokens, C chunks, T tokens of a chunk, S keys, K kept
keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.entries import Entries, SequenceEntries
from llamahome.attention.native_walk import NativeChunks, has_kernels
from llamahome.attention.policy import Policy
from llamahome.attention.rotary import Rotary


class Walked(NamedTuple):
    """Result of a walk.

    Attributes:
        out: (B, H, N, D).
        kept: for each chunk the positions that were kept from before it, (B, G, K) with K at most
            the budget.
        lse: (B, H, N), logarithm of the sum of each query's exponentials; None where torch attends.
    """

    out: Tensor
    kept: list[Tensor]
    lse: Tensor | None


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
    ) -> Walked:
        """Walk the sequence.

        Args:
            features: (B, G, N), what `features` computes; None for a policy without.
        """
        length = query.shape[2]
        held = self._none_of(self._entries(key, value, features))
        attending: NativeChunks | _TorchChunks
        if self.rotary is None and has_kernels(query):
            attending = NativeChunks(query, key, value, self.scaling, self.policy.mass)
        else:
            attending = _TorchChunks(self, query)
        kept = []
        for chunk in self.chunks(length):
            kept.append(held.positions)
            held = held.followed_by(chunk)
            mass = attending.attend(chunk, held)
            if chunk.stop < length:
                held = self._compact(held, mass, chunk.stop)
        return Walked(attending.out, kept, attending.lse)

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

    @staticmethod
    def _none_of(whole: Entries) -> SequenceEntries:
        features = whole.features
        return SequenceEntries(
            whole,
            mass=whole.mass[:, :, :0],
            positions=whole.positions[:, :, :0],
            features=None if features is None else features[:, :, :0],
        )

    def _compact(self, held: SequenceEntries, mass: Tensor | None, length: int) -> SequenceEntries:
        if mass is not None:
            held = held.with_mass(held.mass + mass)
        if self.policy.kept(held.positions.shape[2]) < held.positions.shape[2]:
            held = held.kept(self.policy.select(held, length))
        if self.policy.mass is not None:
            held = held.with_mass(held.mass * self.policy.mass.carry)
        return held


class _TorchChunks:
    """Chunks of one walk, computed by torch, one after another."""

    lse = None

    def __init__(self, walk: Walk, query: Tensor) -> None:
        self._walk = walk
        self._query = query
        self._outputs: list[Tensor] = []

    def attend(self, chunk: slice, held: Entries) -> Tensor | None:
        """Attend with a chunk to what is held, itself included; return the mass (B, G, S)."""
        out, mass = self._walk.attend_chunk(
            self._query[:, :, chunk], held.keys, held.values, with_mass=True
        )
        self._outputs.append(out)
        return mass

    @property
    def out(self) -> Tensor:
        """Output of all chunks, (B, H, N, D)."""
        return torch.cat(self._outputs, dim=2)
