"""Ranges of a search, and what is drawn from them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llamahome.config import ConfigError
from train.sweeps.space import draw, parse_space

SPACE = {
    "trainer": {"learning_rate": "loguniform(1e-5, 1e-3)", "lora": {"r": "choice(4, 8)"}},
    "policy": "choice(h2o,window)",
}


def values(overrides: list[str]) -> dict[str, str]:
    return dict(each.split("=", 1) for each in overrides)


def test_values_are_drawn_from_their_ranges() -> None:
    points = [values(point) for point in draw(parse_space(SPACE), 200, seed=0)]
    assert all(list(p) == ["trainer.learning_rate", "trainer.lora.r", "policy"] for p in points)
    assert {point["policy"] for point in points} == {"h2o", "window"}
    assert {point["trainer.lora.r"] for point in points} == {"4", "8"}
    rates = [float(point["trainer.learning_rate"]) for point in points]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    # Its logarithm is uniform: about half of the values are below the geometric mean.
    below = sum(rate < math.sqrt(1e-5 * 1e-3) for rate in rates)
    assert 70 < below < 130


def test_more_samples_begin_with_those_of_fewer_and_a_seed_draws_others() -> None:
    space = parse_space(SPACE)
    assert draw(space, 5, seed=0) == draw(space, 9, seed=0)[:5]
    assert draw(space, 5, seed=0) != draw(space, 5, seed=1)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("choice(null)", "null"),
        ("choice(true)", "true"),
        ("choice([q_proj, v_proj])", '["q_proj", "v_proj"]'),
        ("choice('a b')", '"a b"'),
        ("choice(0.00012345678)", "0.0001235"),
        ("randint(3, 4)", "3"),
    ],
)
def test_a_value_is_spelled_as_hydra_reads_it(text: str, spelled: str) -> None:
    assert draw(parse_space({"key": text}), 1, seed=0) == [[f"key={spelled}"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1e-5", r"give a range such as loguniform\(1e-5,1e-3\)"),
        ([1, 2], "give a range"),
        ("normal(0, 1)", "there are choice, uniform"),
        ("__import__('os')", "give a range"),
        ("loguniform(0, 1)", "greater than 0"),
        ("loguniform(1)", "argument"),
        ("uniform(2, 1)", "high - low < 0"),
        ("uniform(a, b)", "not allowed"),
        ("randint(5, 2)", "low >= high"),
        ("choice()", "not allowed"),
        ("choice([)", "not allowed"),
        ("quniform(0, 1, 0.3)", "not divisible"),
    ],
)
def test_what_is_no_range_is_refused_by_key(text: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_space({"trainer": {"steps": text}})
    assert str(refused.value).startswith(f"search.space.trainer.steps={text!r} is not allowed")
    assert "\n" not in str(refused.value)
