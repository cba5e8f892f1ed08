"""The policies that an evaluation compares, each with the floors that it has to beat."""

from __future__ import annotations

from dataclasses import replace

from llamahome.config import ConfigError, EvalConfig, PolicyConfig
from llamahome.config.policy import CARRIED

# Policies that need no score: sinks and the newest (StreamingLLM, Xiao et al. 2023, arXiv
# 2309.17453), and chance.
FLOORS = ("window", "random")


def measured_policies(
    base: PolicyConfig, config: EvalConfig, carried: PolicyConfig | None, context: int
) -> list[PolicyConfig]:
    """Return every policy at every budget, and the floors at the same budgets.

    `carried` is measured once, at its own budget, and `full` not at all.

    Raises:
        ConfigError: for a budget that a policy cannot have, or a model that carries no policy.
    """
    policies = []
    for name in config.policies:
        if name == CARRIED:
            if carried is None:
                raise ConfigError("eval.policies: the model carries no policy; name one, like h2o")
            policies.append(carried)
        elif name != "full":
            policies += [
                at_budget(base, name, config.entries(budget, context), config.recent_share)
                for budget in config.budgets
            ]
    floors = [replace(policy, name=floor) for floor in FLOORS for policy in policies]
    policies += floors  # two policies at one budget have the same floors
    return [policy for i, policy in enumerate(policies) if policy not in policies[:i]]


def at_budget(
    base: PolicyConfig, name: str, entries: int, recent_share: float = 0.5
) -> PolicyConfig:
    """Return `base` under another name and budget; `recent_share` of it is for the newest."""
    recent = max(1, round(recent_share * entries))
    recent = min(recent, max(1, entries - base.sink))
    return replace(
        base, name=name, budget=entries, recent=recent, interval=min(base.interval, recent)
    )
