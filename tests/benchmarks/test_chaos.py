"""Figures of the faults under load."""

from __future__ import annotations

import pytest

from benchmarks.chaos.__main__ import summary
from benchmarks.chaos.clients import Outcome
from benchmarks.chaos.faults import Report
from benchmarks.chaos.leaving import Leaving


@pytest.mark.parametrize(
    ("bytes_at", "until"),
    [([], 0), ([10.5, 11.0], 0), ([12.0, 12.1], 12.0), ([10.1, 12.0, 12.5, 14.0, 14.1], 14.0)],
    ids=["refused", "steady", "a late first token", "two pauses"],
)
def test_a_pause_is_over_with_the_next_chunk(bytes_at, until):
    outcome = Outcome(prompt="a", sent=10.0, ended=20.0, bytes_at=bytes_at)
    assert outcome.paused_until() == until


def test_the_summary_counts_what_engines_lost():
    def report(fault: str, lost: int) -> Report:
        return Report(
            fault=fault,
            accepted=9,
            completed=9 - lost,
            lost=lost,
            silent=0,
            refused=0,
            recovery_s=1.5,
            replaced_s=2.0,
        )

    reports = [report("engine", 1), report("ingress", 4), report("engine that hangs", 2)]
    left = Leaving(part="drain", answers=2, completed=2, seconds=0.5, until="it ended")
    assert summary(reports, [left]) == {
        "failover_lost": 3,
        "recovery_s": {"engine": 1.5, "ingress": 1.5, "engine that hangs": 1.5},
        "leaving_s": {"drain: it ended": 0.5},
    }
