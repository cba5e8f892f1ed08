"""Failures of workers as one line, in the records and on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import ControllerError, WorkerGroupError

from train import metrics
from train.errors import DivergedError, FullDiskError, StoppedError, WorkersFailedError
from train.failures import TRACEBACKS, explain, record_end


class ActorDiedError(Exception):
    """Ray's, by its name."""


GONE = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:5004. This is typical")


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        ({0: ValueError("bad. Long explanation\nmore")}, "worker 0: ValueError: bad; "),
        ({0: GONE, 1: ValueError("why")}, "worker 1: ValueError: why; "),
        ({1: MemoryError()}, "worker 1: MemoryError; lower trainer.batch_size and raise"),
        ({0: RuntimeError("CUDA out of memory")}, "memory; lower trainer.batch_size and raise"),
        ({0: ActorDiedError("The actor died")}, "died; the process was killed, often for want"),
    ],
)
def test_workers_that_failed_are_one_line(
    tmp_path: Path, failures: dict[int, Exception], line: str
) -> None:
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    error = explain(WorkerGroupError("Traceback of all", failures), tmp_path)
    assert isinstance(error, WorkersFailedError)
    assert line in str(error)
    assert "\n" not in str(error)
    assert str(error).endswith(f"trainer.run_name={tmp_path.name} goes on from step-000004")
    assert "Traceback of all" in (tmp_path / TRACEBACKS).read_text()


def test_a_final_error_is_itself(tmp_path: Path) -> None:
    final = DivergedError("the loss is nan")
    assert explain(ControllerError(ControllerError(final)), tmp_path) is final
    assert not (tmp_path / TRACEBACKS).exists()


def test_what_ended_a_run_is_its_last_record(tmp_path: Path) -> None:
    record_end(tmp_path, StoppedError("asked"))
    record_end(tmp_path, WorkersFailedError("a worker's own record says why"))
    assert metrics.read(tmp_path) == []
    record_end(tmp_path, FullDiskError("no space"))
    assert metrics.read(tmp_path) == [{"failure": "no space"}]
