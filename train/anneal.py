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

    Over `trainer.anneal_steps` each KV head's budget falls geometrically from the whole context to
    its own. All of a step are multiplied by one factor, log-uniform within 1 +
    `trainer.budget_jitter`, so that the model does not fit one size alone. Equal budgets stay
    equal and others in their order, so a layer never has more planes than under `policy`. The
    recent window scales with `policy.budget`. A share of `trainer.dense_share` of all steps evicts
    nothing.
    """
    if policy.budget is None:
        return policy
    if random.Random(f"{trainer.seed}:{step}:dense").random() < trainer.dense_share:
        return PolicyConfig.dense(positions=policy.positions)
    widest = math.log1p(trainer.budget_jitter)
    factor = math.exp(random.Random(f"{trainer.seed}:{step}:budget").uniform(-widest, widest))
    left = max(0.0, 1 - step / trainer.anneal_steps) if trainer.anneal_steps else 0.0
    return _scaled(policy, context_length, left, factor)


def _scaled(policy: PolicyConfig, context_length: int, left: float, factor: float) -> PolicyConfig:
    """Scale every budget and the recent window, no smaller than sinks and chunks allow.

    Args:
        left: share of the way from the whole context, in logarithms, that is still to fall.
    """
    assert policy.budget is not None

    def growth(budget: int) -> float:
        return factor * math.pow(max(1.0, context_length / budget), left)

    recent = max(policy.interval, round(policy.recent * growth(policy.budget)))
    protected = policy.sink + recent
    # A pyramid's last layer has half of the budget.
    least = 2 * protected if policy.layers == "pyramid" else protected
    return replace(
        policy,
        budget=max(least, round(policy.budget * growth(policy.budget))),
        recent=recent,
        pattern={
            heads: None if budget is None else max(protected, round(budget * growth(budget)))
            for heads, budget in policy.pattern.items()
        },
    )
