"""The policies of an evaluation, and their floors."""

from __future__ import annotations

import pytest

from llamahome.config import ConfigError, EvalConfig, PolicyConfig
from llamahome.evaluation import at_budget, measured_policies

BASE = PolicyConfig(decay=None)


def _named(config: EvalConfig, carried: PolicyConfig | None = None) -> list[tuple[str, int | None]]:
    return [(p.name, p.budget) for p in measured_policies(BASE, config, carried, 2000)]


def test_floors_are_measured_at_every_budget_once() -> None:
    assert _named(EvalConfig(policies=["snapkv", "tova"], budgets=[0.1, 300])) == [
        (name, budget) for name in ("snapkv", "tova", "window", "random") for budget in (200, 300)
    ]
    assert _named(EvalConfig(policies=["random", "h2o", "h2o"], budgets=[0.1])) == [
        ("random", 200),
        ("h2o", 200),
        ("window", 200),
    ]
    assert _named(EvalConfig(policies=["full"])) == []


def test_a_share_of_the_budget_is_for_the_newest() -> None:
    config = EvalConfig(policies=["h2o"], budgets=[0.1], recent_share=0.25)
    own, *floors = measured_policies(BASE, config, None, 2000)
    assert (own.budget, own.recent, own.interval, own.decay) == (200, 50, 50, None)
    assert all((f.budget, f.recent, f.interval) == (200, 50, 50) for f in floors)
    assert at_budget(BASE, "h2o", 100).recent == 50
    assert at_budget(PolicyConfig(sink=40), "h2o", 100, 1.0).recent == 60


def test_a_carried_policy_has_floors_of_its_own_pattern() -> None:
    carried = PolicyConfig(budget=300, pattern={"L1H0": None})
    config = EvalConfig(policies=["carried"])
    assert measured_policies(BASE, config, carried, 2000)[0] is carried
    assert _named(config, carried) == [("h2o", 300), ("window", 300), ("random", 300)]
    floors = measured_policies(BASE, config, carried, 2000)[1:]
    assert all(floor.pattern == carried.pattern for floor in floors)
    with pytest.raises(ConfigError, match=r"eval\.policies: the model carries no policy"):
        measured_policies(BASE, config, None, 2000)
