"""A user's own code during a run: called in the driver, fed from the run's records.

Workers and driver share files only, so a callback sees a step up to a second after it was taken,
and slows nothing down.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llamahome.config import ConfigError
from train.checkpoint import path_of
from train.metrics import Observer, Record
from train.stopping import forget_request, request_stop

# The column by which a record is known, and the method that takes it.
EVENTS = {"loss": "on_step", "eval_loss": "on_evaluate", "checkpoint": "on_checkpoint"}
METHODS = (*EVENTS.values(), "on_end")


@dataclass(frozen=True)
class ActiveRun:
    """A run that trains.

    Attributes:
        directory: its folder, with metrics.jsonl, samples.jsonl and checkpoints.
    """

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end; the same name resumes it exactly."""
        request_stop(self.directory)


class Callback(Protocol):
    """Methods of a callback; an object may have any of them.

    A step that workers repeat after a failure is reported once. An error in a callback stops the
    run as `ActiveRun.stop` does, and is raised when it has ended.
    """

    def on_step(self, run: ActiveRun, record: Record) -> None:
        """Take a step's `step`, `loss`, `grad_norm`, `mfu` and so on, as metrics.jsonl has them."""

    def on_evaluate(self, run: ActiveRun, record: Record) -> None:
        """Take `step` and `eval_loss`, once the step's answers are in samples.jsonl."""

    def on_checkpoint(self, run: ActiveRun, record: Record) -> None:
        """Take `step` and the path `checkpoint`, once it is complete."""

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Take the error with which the run has ended; None after an export."""


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Look for methods that would never be called.

    Raises:
        ConfigError: for an object without any method of a callback, or with a misspelled one.
    """
    for callback in callbacks:
        kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        if isinstance(callback, type):
            raise ConfigError(f"callbacks: {kind} is a class; give an object, {kind}(...)")
        names = [name for name in dir(callback) if name.startswith("on_")]
        for name in sorted(set(names) - set(METHODS)):
            close = difflib.get_close_matches(name, METHODS, n=1)
            cure = f"did you mean {close[0]}?" if close else f"choose among {', '.join(METHODS)}"
            raise ConfigError(f"callbacks: nothing calls {kind}.{name}; {cure}")
        if not names:
            raise ConfigError(f"callbacks: {kind} has none of {', '.join(METHODS)}; add one")


@contextmanager
def calling(callbacks: Sequence[Any], run_dir: Path) -> Iterator[Observer]:
    """Yield an observer that calls `callbacks`, and say at the end of the block how it ended.

    Raises:
        Exception: the first that a callback raised.
    """
    run = ActiveRun(run_dir)
    failures: list[Exception] = []
    last: dict[str, int] = {}

    def observe(record: Record) -> None:
        for column, method in EVENTS.items():
            if column not in record or record["step"] <= last.get(column, -1) or failures:
                continue
            last[column] = record["step"]
            try:
                for callback in callbacks:
                    _call(callback, method, run, _as_given(record, run_dir))
            except Exception as error:  # noqa: BLE001 - raised again when the run has ended
                failures.append(error)
                run.stop()

    ended_by: BaseException | None = None
    try:
        yield observe
    except BaseException as error:
        ended_by = error
        raise
    finally:
        forget_request(run_dir)
        for callback in callbacks:
            _call(callback, "on_end", run, failures[0] if failures else ended_by)
        if failures:
            raise failures[0]


def _as_given(record: Record, run_dir: Path) -> Record:
    """Return a copy, which a callback may change, with the path of a checkpoint."""
    if "checkpoint" not in record:
        return dict(record)
    return {**record, "checkpoint": path_of(run_dir, record["step"])}


def _call(callback: Any, method: str, *arguments: Any) -> None:
    function = getattr(callback, method, None)
    if function is not None:
        function(*arguments)
