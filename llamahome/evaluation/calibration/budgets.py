"""Budgets of KV heads from the error that eviction really makes.

A few heads have most of the error. Each head's is measured: its policy walks over recorded dense
attention at a ladder of budgets, and the change of its output is weighed by the loss's gradient.
Entries then go to the heads where they save most.

Axes: L layers, H query heads, G KV heads, N tokens, K rungs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from llamahome.attention import Policy
from llamahome.attention.walk import Walk
from llamahome.config import ConfigError, PolicyConfig
from llamahome.config.policy import MULTIPLE
from llamahome.evaluation.calibration.recording import LayerRecord
from llamahome.evaluation.calibration.retrieval import best_heads

# Budgets as shares of the context; few, so that heads of a layer share planes.
SHARES = (0.04, 0.055, 0.08, 0.1, 0.14, 0.2, 0.28, 0.4, 0.55, 0.75)


def ladder(policy: PolicyConfig, context: int) -> list[int]:
    """Return the budgets to choose from, ascending, for texts of `context` tokens."""
    least = policy.sink + policy.recent + 1
    rungs = {max(least, round(share * context)) for share in SHARES}
    return sorted({-(-rung // MULTIPLE) * MULTIPLE for rung in rungs})


@torch.no_grad()
def head_errors(layers: Sequence[LayerRecord], policy: Policy, budget: int) -> Tensor:
    """Return the loss that each KV head adds under `budget`, to second order: (L, G), float64.

    In nats per token: half of the mean square of gradient times change of output, summed over the
    query heads of a KV head.
    """
    return torch.stack(
        [
            _layer_error(record, policy.within(budget), layer_idx)
            for layer_idx, record in enumerate(layers)
        ]
    )


def _layer_error(record: LayerRecord, policy: Policy, layer_idx: int) -> Tensor:
    walk = Walk(
        policy=policy,
        layer_idx=layer_idx,
        heads=tuple(range(record.key.shape[1])),
        scaling=record.scaling,
        rotary=None,
    )
    assert record.grad is not None
    features = walk.features(record.key, record.value)
    out = walk.run(record.query, record.key, record.value, features).out
    change = (record.grad * (out - record.out)).sum(dim=-1)  # (1, H, N)
    return record.by_group(change).sum(dim=2)[0].double().square().mean(dim=-1) / 2


def allocate(errors: Tensor, rungs: Sequence[int], total: int, floors: Tensor) -> list[list[int]]:
    """Return the budget of each KV head, (L, G), which add up to `total` for each on average.

    Greedy along each head's lower convex hull, which is exact for budgets on the hulls (Fox 1966,
    "Discrete Optimization via Marginal Analysis"). What the last steps leave goes to one head.

    Args:
        errors: (L, G, K), of each head at each budget.
        rungs: the budgets, K of them, ascending.
        total: entries per KV head, on average.
        floors: (L, G), rungs from which heads start, as `floors_of` makes them.

    Raises:
        ConfigError: for a total that is below the floors or above the last rung.
    """
    check_total(total, rungs, floors)
    flat = errors.flatten(0, 1)
    heads = len(flat)
    held = _climb(flat, rungs, floors.flatten().tolist(), total * heads)
    most_loaded = max(range(heads), key=lambda head: (held[head] < rungs[-1], -held[head]))
    held[most_loaded] += total * heads - sum(held)
    groups = errors.shape[1]
    return [held[start : start + groups] for start in range(0, heads, groups)]


def floors_of(scores: Tensor, rungs: Sequence[int], *, heads: int, entries: int) -> Tensor:
    """Return where heads start, (L, G): the `heads` of the highest scores with some `entries`."""
    start = torch.full(scores.shape, rungs[0])
    start[best_heads(scores, heads)] = min((r for r in rungs if r >= entries), default=rungs[-1])
    return start


def check_total(total: int, rungs: Sequence[int], floors: Tensor) -> None:
    """Raise ConfigError for an average that is below the floors (L, G) or above the last rung."""
    least = -(-int(floors.sum()) // floors.numel())
    if not least <= total <= rungs[-1]:
        raise ConfigError(
            f"--budget: {total} entries a head on average are not between {least}, of which heads "
            f"that look things up take most, and {rungs[-1]}; ask for something between, or for "
            "fewer --lookup-heads"
        )


def _climb(errors: Tensor, rungs: Sequence[int], held: list[int], total: int) -> list[int]:
    """Raise budgets to `total` entries at most, where the error falls most per entry."""
    left = total - sum(held)
    steps = []
    for head, own in enumerate(errors.tolist()):
        first = rungs.index(held[head])
        for start, to, fall in _hull(own[first:], rungs[first:]):
            steps.append((-fall / (to - start), head, start, to))
    heapq.heapify(steps)
    while steps:
        _, head, start, to = heapq.heappop(steps)
        # A step that did not fit ends its head's climb.
        if held[head] == start and to - start <= left:
            held[head] = to
            left -= to - start
    return held


def _hull(errors: Sequence[float], rungs: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return the steps of the lower convex hull: from, to, and the error's fall."""
    points = list(zip(rungs, errors, strict=True))
    (x, y), steps = points[0], []
    while points := [point for point in points if point[0] > x]:
        slope, rung, error = max(((y - error) / (rung - x), rung, error) for rung, error in points)
        if slope <= 0:
            break
        steps.append((x, rung, y - error))
        x, y = rung, error
    return steps


def remaining(errors: Tensor, rungs: Sequence[int], total: int) -> Tensor:
    """Return the error of each head (L, G) at the largest budget up to `total`."""
    at = max((i for i, rung in enumerate(rungs) if rung <= total), default=0)
    return errors[..., at]
