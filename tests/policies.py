"""Every policy and option once, for the matrix tests of attention and cache."""

from __future__ import annotations

from typing import Any

import torch

from llamahome.attention import Policy, build_policy
from llamahome.attention.shape import Configured
from llamahome.config import PolicyConfig

# Differences from plain h2o: no decay, sums over the group, equal layers, absolute positions.
CASES: dict[str, dict[str, Any]] = {
    "h2o": {},
    "h2o_decay": {"decay": 7},
    "h2o_normalize": {"normalize": True},
    "h2o_decay_normalize": {"decay": 7, "normalize": True},
    "h2o_max": {"group": "max"},
    "h2o_rolling": {"positions": "rolling"},
    "h2o_pattern": {"pattern": {"L0H1": None, "L1": 9}},
    "h2o_pattern_rolling": {"pattern": {"L0H0": 10}, "positions": "rolling"},
    "h2o_pyramid": {"layers": "pyramid", "recent": 4},
    "value_norm": {"name": "value_norm"},
    "snapkv": {"name": "snapkv", "window": 2},
    "snapkv_whole_chunk": {"name": "snapkv", "window": 99},
    "tova": {"name": "tova"},
    "window": {"name": "window"},
    "keydiff": {"name": "keydiff"},
    "random": {"name": "random"},
    "learned": {"name": "learned"},
    "learned_pattern": {"name": "learned", "pattern": {"L0H1": None, "L1": 9}},
    "learned_rolling": {"name": "learned", "positions": "rolling"},
}


def policy_case(case: str, **numbers: Any) -> PolicyConfig:
    """Return a case's policy; `numbers` override the defaults, the case overrides both."""
    small = {"name": "h2o", "budget": 12, "sink": 2, "recent": 6, "interval": 4, "decay": None}
    return PolicyConfig(**{**small, **numbers, **CASES[case]})


def built(config: PolicyConfig, model: Configured | None = None, *, seed: int = 0) -> Policy:
    """Build a policy; where it has weights, they are random, so that all of them matter."""
    policy = build_policy(config, model)
    if policy.weights is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in policy.weights.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1])
    return policy
