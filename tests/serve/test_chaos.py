"""Each part of a real endpoint is killed or stopped under load: `make test-chaos`, some minutes."""

from __future__ import annotations

import pytest

from benchmarks.chaos.__main__ import measure
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.leaving import Leaving
from tests.ports import free_ports

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives workers a niceness of 15, with which they starve on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


def left(*parts: str) -> list[Leaving]:
    (port,) = free_ports(1)
    return measure(parts, 4, 1, [f"serve.port={port}"])[1]


def test_no_accepted_answer_is_lost_silently():
    (port,) = free_ports(1)
    reports, _ = measure(("faults",), 4, 2, [f"serve.port={port}"])
    assert [report.fault for report in reports] == [name for name, *_ in FAULTS]
    assert [report.silent for report in reports] == [0] * len(FAULTS)
    assert {report.fault for report in reports if report.lost} <= {"ingress"}
    assert all(report.completed for report in reports)


def test_the_slots_of_an_ingress_that_is_killed_are_freed():
    (orphans,) = left("orphans")
    assert orphans.answers > 0


def test_an_application_goes_to_zero_and_drains_what_it_gives_up():
    slept, woken, drained = left("to_zero", "drain")
    assert (slept.completed, woken.completed, drained.completed) == (1, 1, 2)


def test_sigterm_lets_answers_end():
    (stopped,) = left("stop")
    assert stopped.completed == stopped.answers == 4


def test_a_second_ctrl_c_does_not_wait_for_answers():
    (stopped,) = left("stop_twice")
    assert stopped.completed == 0
