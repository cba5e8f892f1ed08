"""The file between workers and driver."""

from __future__ import annotations

import threading
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


def test_a_restart_replaces_the_steps_after_its_checkpoint() -> None:
    before = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    after: list[metrics.Record] = [
        {"failure": "killed"},
        {"step": 2, "loss": 2.5},
        {"step": 2, "eval_loss": 9.0},
        {"step": 3, "loss": 3.5},
    ]
    assert list(metrics.series([*before, *after], "loss").items()) == [(1, 1), (2, 2.5), (3, 3.5)]
    assert metrics.series([*before, *after], "eval_loss") == {2: 9.0}


def test_observers_get_what_is_added_during_the_block(tmp_path: Path) -> None:
    metrics.append(tmp_path, {"step": 1})
    seen: list[metrics.Record] = []
    came = threading.Event()
    with metrics.follow(tmp_path, [seen.append, lambda record: came.set()]):
        metrics.append(tmp_path, {"step": 2})
        assert came.wait(60)
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


def test_an_error_of_an_observer_is_raised(tmp_path: Path) -> None:
    def refuse(record: metrics.Record) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"), metrics.follow(tmp_path, [refuse]):
        metrics.append(tmp_path, {"step": 1})
