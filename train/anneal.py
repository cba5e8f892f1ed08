"""The budget of each training step: falling from dense to the target, then varied around it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from llamahome.config import PolicyConfig, TrainerConfig


def policy_at(
    policy: PolicyConfig, trainer: TrainerConfig, context_length: int, step: int
) -> PolicyConfig:
    """Return the policy of step `step` (from 0), the same on all workers and after a restart.

    Over `trainer.anneal_steps` the budget falls geometrically from the whole context to
    `policy.budget`. Then it is drawn log-uniformly within a factor of 1 + `trainer.budget_jitter`
    around it, so that the model does not fit one size alone. The recent window and the pattern
    scale with it. A share of `trainer.dense_share` of all steps evicts nothing.
    """
    if policy.budget is None:
        return policy
    if random.Random(f"{trainer.seed}:{step}:dense").random() < trainer.dense_share:
        return PolicyConfig.dense(positions=policy.positions)
    factor = 1.0
    if step < trainer.anneal_steps:
        left = 1 - step / trainer.anneal_steps
        factor = max(1.0, context_length / policy.budget) ** left
    widest = math.log1p(trainer.budget_jitter)
    factor *= math.exp(random.Random(f"{trainer.seed}:{step}:budget").uniform(-widest, widest))
    return _scaled(policy, factor)


def _scaled(policy: PolicyConfig, factor: float) -> PolicyConfig:
    """Multiply every budget and the recent window, no smaller than sinks and chunks allow."""
    assert policy.budget is not None
    recent = max(policy.interval, round(policy.recent * factor))
    protected = policy.sink + recent
    # A pyramid's last layer has half of the budget.
    least = 2 * protected if policy.layers == "pyramid" else protected
    return replace(
        policy,
        budget=max(least, round(policy.budget * factor)),
        recent=recent,
        pattern={
            heads: None if budget is None else max(protected, round(budget * factor))
            for heads, budget in policy.pattern.items()
        },
    )
