"""The budget of each step."""

from __future__ import annotations

import math

import pytest

from llamahome.config import PolicyConfig, TrainerConfig
from train.anneal import policy_at

TARGET = PolicyConfig(
    budget=200, recent=100, interval=50, pattern={"L0": None, "L1H0": 160, "L2": 400}
)


def budgets(steps: range, **trainer: float) -> list[int]:
    config = TrainerConfig(steps=1000, **trainer)
    return [policy_at(TARGET, config, 3200, step).budget or 0 for step in steps]


def test_without_annealing_every_step_has_the_target() -> None:
    config = TrainerConfig()
    assert all(policy_at(TARGET, config, 3200, step) == TARGET for step in (0, 7, 199))


def test_the_budget_falls_geometrically_from_dense() -> None:
    assert budgets(range(6), anneal_steps=4) == [3200, 1600, 800, 400, 200, 200]


def test_what_is_protected_and_the_pattern_scale_along() -> None:
    policy = policy_at(TARGET, TrainerConfig(anneal_steps=4), 3200, 2)
    assert (policy.budget, policy.recent, policy.interval, policy.sink) == (800, 400, 50, 4)
    # Half of the way in logarithms: the geometric mean of the context and the own budget.
    assert policy.pattern == {"L0": None, "L1H0": 716, "L2": 1131}


def test_jitter_stays_within_its_factor_around_the_target() -> None:
    drawn = budgets(range(300), budget_jitter=1.0)
    assert 100 <= min(drawn) < 115
    assert 350 < max(drawn) <= 400
    mean = math.exp(sum(map(math.log, drawn)) / len(drawn))
    assert mean == pytest.approx(200, rel=0.05)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    assert budgets(range(9), budget_jitter=0.5) == budgets(range(9), budget_jitter=0.5)
    assert budgets(range(9), budget_jitter=0.5) != budgets(range(9), budget_jitter=0.5, seed=1)


@pytest.mark.parametrize("layers", ["flat", "pyramid"])
def test_small_draws_still_hold_what_is_protected(layers: str) -> None:
    tight = PolicyConfig(budget=140, recent=64, interval=64, sink=4, layers=layers)
    config = TrainerConfig(steps=1000, budget_jitter=3.0)
    drawn = [policy_at(tight, config, 3200, step) for step in range(50)]
    assert min(policy.budget or 0 for policy in drawn) == (136 if layers == "pyramid" else 68)


LADDER = (80, 112, 160, 205, 288, 410, 576, 820, 1152)
MEASURED = PolicyConfig(
    budget=205,
    recent=64,
    interval=64,
    pattern={f"L{i // 3}H{i % 3}": LADDER[7 * i % len(LADDER)] for i in range(90)},
)


@pytest.mark.parametrize("step", range(0, 60, 3))
def test_measured_budgets_keep_their_order_and_number(step: int) -> None:
    config = TrainerConfig(steps=1000, anneal_steps=40, budget_jitter=0.5)
    drawn = policy_at(MEASURED, config, 2048, step)
    pairs = {(MEASURED.pattern[head] or 0, own or 0) for head, own in drawn.pattern.items()}
    scaled = [own for _, own in sorted(pairs)]
    assert len(scaled) == len(LADDER)  # equal budgets stay equal
    assert scaled == sorted(scaled)
    assert scaled[0] >= drawn.sink + drawn.recent
    assert drawn.interval <= drawn.recent


def test_every_head_falls_from_the_whole_context() -> None:
    drawn = policy_at(MEASURED, TrainerConfig(anneal_steps=40), 2048, 0)
    assert set(drawn.pattern.values()) == {2048}
    assert policy_at(MEASURED, TrainerConfig(anneal_steps=40), 2048, 40) == MEASURED


def test_dense_stays_dense() -> None:
    full = PolicyConfig.dense()
    assert policy_at(full, TrainerConfig(anneal_steps=4, budget_jitter=1.0), 3200, 0) is full


def test_a_share_of_the_steps_is_dense() -> None:
    config = TrainerConfig(steps=1000, dense_share=0.25)
    drawn = [policy_at(TARGET, config, 3200, step) for step in range(1000)]
    dense = [policy for policy in drawn if policy.name == "full"]
    assert 200 < len(dense) < 300
    assert all(policy == TARGET for policy in drawn if policy.name != "full")
    rolling = PolicyConfig(positions="rolling")
    kinds = {policy_at(rolling, config, 3200, step).positions for step in range(20)}
    assert kinds == {"rolling"}
