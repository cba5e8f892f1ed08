"""Budgets by head: spelled, rescaled, as shares, and as a command's options spell them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from llamahome.config import ConfigError, PolicyConfig
from llamahome.config.policy import entries, policy_config, rescaled, with_budgets

SMALL = PolicyConfig(budget=64, sink=2, recent=6, interval=4)
MEASURED = PolicyConfig(
    name="learned",
    budget=80,
    recent=64,
    pattern={"L0H1": 832, "L1": 416, "L3H0": 112, "L3H1": 1152},
)


def _budgets(policy: PolicyConfig) -> list[int | None]:
    return [policy.budget_of(layer, head, 4) for layer in range(4) for head in range(2)]


def test_a_pattern_says_what_each_head_keeps() -> None:
    budgets = [[16, 16], [32, 32], [16, 48], [8, 16]]
    policy = with_budgets(SMALL, budgets)
    assert policy.budget == 16
    assert policy.pattern == {"L1": 32, "L2H1": 48, "L3H0": 8}
    assert _budgets(policy) == [16, 16, 32, 32, 16, 48, 8, 16]


def test_heads_that_never_evict_are_part_of_a_pattern() -> None:
    policy = with_budgets(SMALL, [[None, 16], [None, None], [16, 16], [16, 16]])
    assert policy.pattern == {"L0H0": None, "L1": None}


@pytest.mark.parametrize("total", [70, 100, 205, 410, 820, 1000])
def test_a_pattern_keeps_its_proportions_at_another_total(total: int) -> None:
    policy = rescaled(MEASURED, total, 4, 2)
    before, after = _budgets(MEASURED), _budgets(policy)
    assert sum(b or 0 for b in after) == 8 * total
    assert min(b or 0 for b in after) >= 68
    assert (policy.name, policy.recent) == ("learned", 64)
    pairs = list(zip(before, after, strict=True))
    for (a, x), (b, y) in itertools.product(pairs, pairs):
        assert a is not None and b is not None and x is not None and y is not None  # noqa: PT018
        assert (x <= y) if a < b else True
    assert len(set(after)) <= 6


def test_budgets_fall_in_proportion_and_become_more_alike_as_they_grow() -> None:
    budgets = [[2000, 1000], [1000, 500], [500, 500], [250, 250]]
    wide = with_budgets(replace(MEASURED, budget=250, recent=8, interval=8, pattern={}), budgets)

    def ratio(total: int) -> float:
        after = _budgets(rescaled(wide, total, 4, 2))
        return (after[1] or 0) / (after[3] or 1)

    assert ratio(750) == pytest.approx(2, rel=0.05)
    assert ratio(375) == pytest.approx(2, rel=0.1)
    assert ratio(6000) == pytest.approx(2**0.5, rel=0.02)  # eight times as many entries


def test_the_same_total_gives_about_the_same_budgets() -> None:
    mean = sum(b or 0 for b in _budgets(MEASURED)) // 8
    policy = rescaled(MEASURED, mean, 4, 2)
    for before, after in zip(_budgets(MEASURED), _budgets(policy), strict=True):
        assert before is not None
        assert after == pytest.approx(before, abs=33)


def test_recent_entries_become_fewer_with_the_budget() -> None:
    flat = PolicyConfig(budget=256, recent=128, interval=32)
    policy = rescaled(flat, 100, 4, 2)
    assert (policy.budget, policy.recent, policy.pattern) == (100, 50, {})
    assert rescaled(flat, 512, 4, 2).recent == 128


def test_a_pyramid_becomes_a_pattern_of_its_form() -> None:
    policy = rescaled(PolicyConfig(budget=256, recent=64, layers="pyramid"), 512, 4, 2)
    budgets = _budgets(policy)
    assert sum(b or 0 for b in budgets) == 8 * 512
    assert budgets == sorted(budgets, key=lambda b: -(b or 0))


def test_full_attention_stays_full() -> None:
    assert rescaled(PolicyConfig.dense(), 100, 4, 2) == PolicyConfig.dense()


def test_a_total_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy\.budget=60 .* sink \+ recent = 4 \+ 64"):
        rescaled(MEASURED, 60, 4, 2)


@pytest.mark.parametrize(("budget", "count"), [(0.1, 205), (1, 2048), (1.5, 2), (300, 300)])
def test_a_budget_of_up_to_one_is_a_share(budget: float, count: int) -> None:
    assert entries(budget, 2048) == count


def test_a_budget_alone_rescales_what_is_carried() -> None:
    assert policy_config("carried", None, None, None, None, 2048) == PolicyConfig(
        name="carried", budget=None
    )
    assert policy_config("carried", 0.1, None, None, None, 2048).budget == 205
    spelled = policy_config("carried", 0.1, None, 50, None, 2048)
    assert (spelled.name, spelled.budget, spelled.recent, spelled.interval) == ("h2o", 205, 50, 50)
    assert policy_config("window", None, 1, None, None, 2048).sink == 1


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_amount_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match="--budget="):
        policy_config("carried", budget, None, None, None, 2048)


def test_the_average_counts_full_heads_as_the_context() -> None:
    policy = PolicyConfig(budget=150, pattern={"L0H0": None, "L3": 3000})
    assert policy.average(4, 2, 1000) == round((1000 + 5 * 150 + 2 * 1000) / 8)
    assert PolicyConfig.dense().average(4, 2, 1000) is None
