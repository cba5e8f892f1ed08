"""The file between workers and driver."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from train import metrics


def test_a_run_without_records_reads_as_empty(tmp_path: Path) -> None:
    assert metrics.read(tmp_path) == []


def test_records_come_back_in_order(tmp_path: Path) -> None:
    metrics.append(tmp_path, {"step": 1, "loss": 2.5})
    metrics.append(tmp_path, {"warning": "a\nb"})
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 2.5}, {"warning": "a\nb"}]


def test_of_a_repeated_step_the_last_value_counts() -> None:
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"failure": "killed"}]
    again = [{"step": 2, "loss": 2.5}, {"step": 2, "eval_loss": 9.0}]
    assert metrics.series([*records, *again], "loss") == {1: 3.0, 2: 2.5}


def test_observers_get_what_is_added_during_the_block(tmp_path: Path) -> None:
    metrics.append(tmp_path, {"step": 1})
    seen: list[metrics.Record] = []
    with metrics.follow(tmp_path, [seen.append]):
        metrics.append(tmp_path, {"step": 2})
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == [{"step": 2}]
        metrics.append(tmp_path, {"step": 3})
    assert seen == [{"step": 2}, {"step": 3}]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    seen: list[metrics.Record] = []
    with metrics.follow(tmp_path, [seen.append]), (tmp_path / metrics.FILE_NAME).open("ab") as file:
        file.write(b'{"step"')
        file.flush()
        time.sleep(3 * metrics.POLL_S)
        file.write(b": 4}\n")
        file.flush()
    assert seen == [{"step": 4}]


def test_an_observer_that_fails_is_heard(tmp_path: Path) -> None:
    def refuse(record: metrics.Record) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"), metrics.follow(tmp_path, [refuse]):
        metrics.append(tmp_path, {"step": 1})
