"""Intervals, against published ones and against what repeated draws do."""

from __future__ import annotations

import math
import random

import pytest

from llamahome.evaluation.intervals import paired_ratio, wilson


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3.
@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_an_interval_is_wilsons(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(asked - right, asked)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("asked", range(1, 60))
def test_an_interval_holds_its_share_to_the_last_bit(asked: int) -> None:
    for right in (0, asked // 2, asked):
        low, high = wilson(right, asked)
        assert 0 <= low <= right / asked <= high <= 1


def test_a_ratio_is_that_of_perplexities() -> None:
    own, dense = [[3.0, 5.0], [2.0, 6.0]], [[2.0, 5.5], [2.5, 4.0]]
    over, interval = paired_ratio(own, dense, tokens=8)
    assert over == pytest.approx(math.exp(16 / 8) / math.exp(14 / 8) - 1)
    # Differences 1, -0.5, -0.5, 2: variance 1.5; the mean's error is sqrt(1.5 / 4) of 2 tokens.
    half = 1.959964 * math.sqrt(1.5 / 4) / 2
    assert interval == pytest.approx((math.exp(0.25 - half) - 1, math.exp(0.25 + half) - 1))


def test_an_interval_is_as_wide_as_repeated_texts_differ() -> None:
    draw = random.Random(0)
    true, tokens, inside = math.expm1(0.02), 40 * 64, 0
    for _ in range(400):
        dense = [[draw.gauss(200, 20) for _ in range(10)] for _ in range(4)]
        own = [[sum_ + draw.gauss(0.02 * 64, 3) for sum_ in window] for window in dense]
        _, interval = paired_ratio(own, dense, tokens)
        assert interval is not None
        inside += interval[0] <= true <= interval[1]
    assert inside / 400 == pytest.approx(0.95, abs=0.03)


def test_a_single_block_has_no_interval() -> None:
    over, interval = paired_ratio([[2.0]], [[1.0]], tokens=10)
    assert over == pytest.approx(math.expm1(0.1))
    assert interval is None


def test_dense_is_not_over_itself() -> None:
    assert paired_ratio([[2.0, 3.0]], [[2.0, 3.0]], tokens=10) == (0, (0, 0))
