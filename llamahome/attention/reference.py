"""Hybrid attention as one would explain it: loops, one query at a time, in float64.

It shares no code with the product, which tests compare with it. One sequence, so there is no batch
axis: H query heads, G KV heads, N tokens, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, stack, zeros

from llamahome.config import PolicyConfig


@dataclass
class Head:
    """One KV head's cache, and all probability that its keys have ever received.

    Attributes:
        index: of the head in its layer.
        held: positions it holds, oldest first.
        received: per position, per query that saw it (its own first), the probability from each
            query head of the group.
    """

    index: int
    held: list[int] = field(default_factory=list)
    received: dict[int, list[list[float]]] = field(default_factory=dict)


Score = Callable[[Head, int], float]
Rotate = Callable[[Tensor, int], Tensor]


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: PolicyConfig,
    score: Score,
    rotate: Rotate = lambda x, place: x,
) -> tuple[Tensor, list[list[list[int]]]]:
    """Return outputs (H, N, D) in float64, and per KV head the positions held after each chunk.

    Args:
        query: (H, N, D).
        key, value: (G, N, D).
        config: of the policy.
        score: of one held position in a head; the highest stay.
        rotate: for rolling positions: a query or key (D,) at its place in the cache.
    """
    query, key, value = query.double(), key.double(), value.double()
    heads, length, dim = query.shape
    groups = key.shape[0]
    out = zeros(heads, length, dim, dtype=query.dtype)
    kept: list[list[list[int]]] = [[] for _ in range(groups)]
    for g in range(groups):
        cache = Head(g)
        for t in range(length):
            cache.held.append(t)
            cache.received[t] = []
            for s in cache.held:
                cache.received[s].append([])
            keys = [rotate(key[g, s], place) for place, s in enumerate(cache.held)]
            for h in range(g * heads // groups, (g + 1) * heads // groups):
                asked = rotate(query[h, t], len(keys) - 1)
                probs = _softmax([float(asked @ k) / math.sqrt(dim) for k in keys])
                out[h, t] = stack(
                    [p * value[g, s] for p, s in zip(probs, cache.held, strict=True)]
                ).sum(0)
                for p, s in zip(probs, cache.held, strict=True):
                    cache.received[s][-1].append(p)
            if (t + 1) % config.interval == 0:
                cache.held = _compact(cache, t + 1, config, score)
                kept[g].append(list(cache.held))
    return out, kept


def _compact(cache: Head, length: int, config: PolicyConfig, score: Score) -> list[int]:
    budget = config.budget_of(0, cache.index, 1)
    if budget is None or len(cache.held) <= budget:
        return cache.held
    always = [s for s in cache.held if s < config.sink or s >= length - config.recent]
    others = [s for s in cache.held if s not in always]
    heavy = sorted(others, key=lambda s: (-score(cache, s), s))[: budget - len(always)]
    return sorted(always + heavy)


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [e / sum(exps) for e in exps]
