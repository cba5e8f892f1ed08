"""The policies that an evaluation compares, each with the floors that it has to beat."""

from __future__ import annotations

from dataclasses import replace

from llamahome.attention.shape import ModelShape
from llamahome.config import ConfigError, EvalConfig, PolicyConfig
from llamahome.config.policy import CARRIED, entries, rescaled

# Policies that need no score: sinks and the newest (StreamingLLM, Xiao et al. 2023, arXiv
# 2309.17453), and chance.
FLOORS = ("window", "random")


def measured_policies(
    base: PolicyConfig,
    config: EvalConfig,
    carried: PolicyConfig | None,
    shape: ModelShape,
    context: int,
) -> list[PolicyConfig]:
    """Return every policy at every budget, and the floors at the same budgets.

    `full` is not among them.

    Args:
        base: everything about the policies but name and budget.
        carried: by the model, of this shape; its budgets are rescaled.

    Raises:
        ConfigError: for a budget that a policy cannot have, or a model that carries no policy.
    """
    policies = []
    for name in config.policies:
        if name == CARRIED:
            if carried is None:
                raise ConfigError("eval.policies: the model carries no policy; name one, like h2o")
            policies += [
                rescaled(carried, entries(budget, context), shape.num_layers, shape.num_kv_heads)
                for budget in config.budgets
            ]
        elif name != "full":
            policies += _at_budgets(base, name, config, context)
    if policies:
        policies += [p for floor in FLOORS for p in _at_budgets(base, floor, config, context)]
    return [policy for i, policy in enumerate(policies) if policy not in policies[:i]]


def _at_budgets(
    base: PolicyConfig, name: str, config: EvalConfig, context: int
) -> list[PolicyConfig]:
    return [
        at_budget(base, name, entries(budget, context), config.recent_share)
        for budget in config.budgets
    ]


def at_budget(
    base: PolicyConfig, name: str, budget: int, recent_share: float = 0.5
) -> PolicyConfig:
    """Return `base` under another name and budget; `recent_share` of it is for the newest."""
    recent = max(1, round(recent_share * budget))
    recent = min(recent, max(1, budget - base.sink))
    return replace(
        base, name=name, budget=budget, recent=recent, interval=min(base.interval, recent)
    )
