"""Two checkouts compared round by round, with known figures."""

from __future__ import annotations

import pytest

from benchmarks.before_after import Compared, changed, measured
from benchmarks.workload import DENSE, evicting
from llamahome.config import PolicyConfig


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    # The machine is three times as slow in the second round.
    own = Compared(
        figure="decode",
        before=[2.0, 6.0, 2.2],
        after=[1.0, 3.0, 2.2],
        tokens=1,
        same=True,
        others=0.0,
    )
    assert own.ratios == [1.0, 2.0, 2.0]
    assert own.ratio == 2.0
    assert own.fastest == pytest.approx(2.0)


def test_only_fields_that_differ_from_the_defaults_are_passed_on() -> None:
    assert changed(PolicyConfig()) == {}
    for policy in (DENSE, evicting(100)):
        assert PolicyConfig(**changed(policy)) == policy
    assert changed(DENSE) == {"name": "full", "budget": None}


def test_measured_budgets_have_the_mean_of_the_equal_ones() -> None:
    policy = measured(evicting(205))
    budgets = [budget or 0 for budget in policy.pattern.values()]
    assert set(policy.pattern) == {f"L{layer}H{head}" for layer in range(30) for head in range(3)}
    assert sum(budgets) / 90 == pytest.approx(205, rel=0.02)
    assert len(set(budgets)) > 5
    assert measured(evicting(51)).budget == 51  # as small as --quick has it
