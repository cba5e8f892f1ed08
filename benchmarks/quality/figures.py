"""Figures of a run, from what was measured of each model and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.measure import Measured
from llamahome.evaluation.intervals import paired_ratio, wilson

Seeds = list[list[Measured]]  # the figures of a model, for each seed
FULL = ("full", 1.0)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, and its 95 % interval: over seeds if there are several, else over the text.

    Attributes:
        arm: `untrained`, `dense` or `policy`: how the model was trained.
        over_dense: perplexity as a share of dense, or right answers; dense is the model of the
            `dense` arm, served dense (of `untrained`: itself).
    """

    arm: str
    task: str
    context: int
    way: str
    share: float
    over_dense: float
    low: float
    high: float


def figures(measured: dict[str, Seeds]) -> list[Figure]:
    """Return every figure of every arm."""
    found = []
    for arm, seeds in measured.items():
        dense = seeds if arm == "untrained" else measured["dense"]
        for own in seeds[0]:
            pairs = [
                (_find(seed, own.task, own.context, (own.way, own.share)), base)
                for seed, base in zip(seeds, dense, strict=True)
            ]
            over = _perplexity if own.task == "perplexity" else _needles
            mean, low, high = over(
                [(mine, _find(base, own.task, own.context, FULL)) for mine, base in pairs]
            )
            found.append(
                Figure(
                    arm=arm,
                    task=own.task,
                    context=own.context,
                    way=own.way,
                    share=own.share,
                    over_dense=mean,
                    low=low,
                    high=high,
                )
            )
    return found


def _find(measured: list[Measured], task: str, context: int, way: tuple[str, float]) -> Measured:
    return next(
        own
        for own in measured
        if (own.task, own.context, (own.way, own.share)) == (task, context, way)
    )


def _perplexity(pairs: Sequence[tuple[Measured, Measured]]) -> tuple[float, float, float]:
    ratios = [
        paired_ratio(own.values["blocks"], dense.values["blocks"], own.values["tokens"])
        for own, dense in pairs
    ]
    if len(ratios) == 1:
        mean, interval = ratios[0]
        low, high = interval or (mean, mean)
        return 1 + mean, 1 + low, 1 + high
    return student([1 + mean for mean, _ in ratios])


def _needles(pairs: Sequence[tuple[Measured, Measured]]) -> tuple[float, float, float]:
    """Return right answers over those of dense, and their interval over the same."""
    right = sum(own.values["right"] for own, _ in pairs)
    asked = sum(own.values["asked"] for own, _ in pairs)
    found = sum(dense.values["right"] for _, dense in pairs)
    low, high = wilson(right, asked)
    scale = asked / max(found, 1)
    return right / max(found, 1), low * scale, high * scale


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval (Student's t) of a few seeds."""
    t = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    mean = statistics.fmean(values)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def nested(found: Sequence[Figure], task: str) -> dict[str, Any]:
    """Return figures by arm, policy, budget and context, for the last line of a run."""
    tree: dict[str, Any] = {}
    for own in found:
        if own.task == task:
            by_share = tree.setdefault(own.arm, {}).setdefault(own.way, {})
            by_share.setdefault(f"{own.share:g}", {})[str(own.context)] = own.over_dense
    return tree
