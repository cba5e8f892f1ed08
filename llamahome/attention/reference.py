"""Hybrid attention as one would explain it: loops, one query at a time, in float64.

Shares no code with the product; tests hold the product against it. One sequence, so there is no
batch axis: H query heads, G KV heads, N tokens, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, stack, zeros

from llamahome.config import PolicyConfig


@dataclass
class Head:
    """One KV head's cache: positions it holds, oldest first, and the mass of each."""

    held: list[int] = field(default_factory=list)
    mass: dict[int, float] = field(default_factory=dict)


Score = Callable[[Head, int], float]


def reference(
    query: Tensor, key: Tensor, value: Tensor, config: PolicyConfig, score: Score
) -> tuple[Tensor, list[list[list[int]]]]:
    """Outputs (H, N, D) in float64, and per KV head the positions held after each full chunk.

    Args:
        query: (H, N, D).
        key, value: (G, N, D).
        config: of the policy.
        score: of one held position in a head; the highest stay.
    """
    query, key, value = query.double(), key.double(), value.double()
    heads, length, dim = query.shape
    groups = key.shape[0]
    out = zeros(heads, length, dim, dtype=query.dtype)
    kept: list[list[list[int]]] = [[] for _ in range(groups)]
    for g in range(groups):
        cache = Head()
        for t in range(length):
            cache.held.append(t)
            cache.mass[t] = 0.0
            for h in range(g * heads // groups, (g + 1) * heads // groups):
                probs = _softmax(
                    [float(query[h, t] @ key[g, s]) / math.sqrt(dim) for s in cache.held]
                )
                out[h, t] = stack(
                    [p * value[g, s] for p, s in zip(probs, cache.held, strict=True)]
                ).sum(0)
                for p, s in zip(probs, cache.held, strict=True):
                    cache.mass[s] += p
            if (t + 1) % config.interval == 0:
                cache.held = _compact(cache, t + 1, config, score)
                kept[g].append(list(cache.held))
    return out, kept


def _compact(cache: Head, length: int, config: PolicyConfig, score: Score) -> list[int]:
    if config.budget is None or len(cache.held) <= config.budget:
        return cache.held
    always = [s for s in cache.held if s < config.sink or s >= length - config.recent]
    others = [s for s in cache.held if s not in always]
    heavy = sorted(others, key=lambda s: (-score(cache, s), s))[: config.budget - len(always)]
    return sorted(always + heavy)


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [e / sum(exps) for e in exps]
