"""Pieces of the worker that need no second process."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(4, 2, True), (3, 2, False), (9, 0, True), (8, 0, False), (9, 2, True)],
)
def test_the_last_step_is_always_due(step: int, every: int, due: bool) -> None:
    from train.worker import is_due  # DeepSpeed looks for its device when it is imported

    assert is_due(step, every, last=9) is due
