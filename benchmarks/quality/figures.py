"""Figures of a run, from what was measured of each model and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.form import Form, at_equal_budgets
from benchmarks.quality.measure import Served
from benchmarks.workload import DENSE
from llamahome.config import PolicyConfig


def figures(
    dense: Served, hybrid: Served, form: Form, proposed: dict[float, PolicyConfig]
) -> dict[str, float]:
    """Return the figures of one seed; `best` is the dense model served dense."""
    best, found = dense.nll(DENSE), max(dense.needle(DENSE), 1e-9)
    own = {"dense_harm": math.exp(hybrid.nll(DENSE) - best) - 1}
    for share, pattern in proposed.items():
        percent = round(100 * share)
        (flat,) = at_equal_budgets(["h2o"], [share], form)
        for name, policy in (("", pattern), ("flat_", flat)):
            opened, left = dense.nll(policy) - best, hybrid.nll(policy) - best
            own[f"{name}gap_closed_{percent}"] = 1 - left / opened
            own[f"{name}ppl_over_dense_{percent}"] = math.exp(left)
            own[f"{name}untrained_ppl_over_dense_{percent}"] = math.exp(opened)
        own[f"needle_over_dense_{percent}"] = hybrid.needle(pattern) / found
        own[f"untrained_needle_over_dense_{percent}"] = dense.needle(pattern) / found
    return own


def served_rows(models: dict[str, list[Served]]) -> list[dict[str, Any]]:
    """Return a row for each model, task and policy; its values are lists, one item a seed."""
    rows = []
    for model, seeds in models.items():
        for result in seeds[0].results:
            policy = PolicyConfig(**result.policy)
            found = [own.find(result.task, policy) for own in seeds]
            values: dict[str, Any] = (
                {"accuracy": [f["accuracy"] for f in found]}
                if result.task == "needle"
                else {
                    "nll": [statistics.fmean(f["nll"]) for f in found],
                    "kl": [statistics.fmean(f["kl"]) for f in found],
                }
            )
            kind = "pattern" if policy.pattern else policy.name
            rows.append(
                {"model": model, "task": result.task, "policy": kind, "budget": policy.budget}
                | {"kv_share": found[0]["kv"]["final"] / found[0]["kv"]["dense"]}
                | values
            )
    return rows


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and half its 95 % interval (Student's t); None for a single value."""
    if len(values) < 2:
        return values[0], None
    t = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))
