"""The policies of an evaluation, and their floors."""

from __future__ import annotations

import pytest

from llamahome.attention.shape import ModelShape
from llamahome.config import ConfigError, EvalConfig, PolicyConfig
from llamahome.evaluation import at_budget, measured_policies

BASE = PolicyConfig(decay=None)
SHAPE = ModelShape(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)


def _named(config: EvalConfig, carried: PolicyConfig | None = None) -> list[tuple[str, int | None]]:
    return [(p.name, p.budget) for p in measured_policies(BASE, config, carried, SHAPE, 2000)]


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
    own, *floors = measured_policies(BASE, config, None, SHAPE, 2000)
    assert (own.budget, own.recent, own.interval, own.decay) == (200, 50, 50, None)
    assert all((f.budget, f.recent, f.interval) == (200, 50, 50) for f in floors)
    assert at_budget(BASE, "h2o", 100).recent == 50
    assert at_budget(PolicyConfig(sink=40), "h2o", 100, 1.0).recent == 60


def test_a_carried_policy_is_rescaled_to_every_budget() -> None:
    carried = PolicyConfig(name="snapkv", budget=150, recent=64, pattern={"L1H0": 600, "L0": 300})
    config = EvalConfig(policies=["carried"], budgets=[0.1, 0.3])
    small, large, *floors = measured_policies(BASE, config, carried, SHAPE, 2000)
    assert [p.average(2, 2, 2000) for p in (small, large)] == [200, 600]
    assert [p.name for p in (small, large)] == ["snapkv", "snapkv"]
    assert [(p.name, p.budget, p.pattern) for p in floors] == [
        ("window", 200, {}),
        ("window", 600, {}),
        ("random", 200, {}),
        ("random", 600, {}),
    ]
    with pytest.raises(ConfigError, match=r"eval\.policies: the model carries no policy"):
        measured_policies(BASE, config, None, SHAPE, 2000)
