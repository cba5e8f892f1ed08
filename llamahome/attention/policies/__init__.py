"""The policies, one file each: `mass(config)`, and `score(entries, config) -> (B, G, S)`.

A policy with weights has `build(config, model)` instead, which returns its `Scorer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.attention.policies import (
    h2o,
    keydiff,
    learned,
    random,
    snapkv,
    tova,
    value_norm,
    window,
)
from llamahome.attention.scorer import Scorer
from llamahome.attention.shape import Configured
from llamahome.config import PolicyConfig

Build = Callable[[PolicyConfig, Configured | None], Scorer]


class Rule(Protocol):
    """A policy without weights: a module with these two functions."""

    @property
    def mass(self) -> Callable[[PolicyConfig], Mass | None]: ...
    @property
    def score(self) -> Callable[[Entries, PolicyConfig], Tensor]: ...


def rule(module: Rule) -> Build:
    """Return the builder of a policy without weights."""

    def build(config: PolicyConfig, model: Configured | None) -> Scorer:
        return Scorer(score=lambda entries: module.score(entries, config), mass=module.mass(config))

    return build


BUILDERS: dict[str, Build] = {
    "h2o": rule(h2o),
    "value_norm": rule(value_norm),
    "snapkv": rule(snapkv),
    "tova": rule(tova),
    "window": rule(window),
    "keydiff": rule(keydiff),
    "random": rule(random),
    "learned": learned.build,
}

__all__ = ["BUILDERS", "Build", "rule"]
