"""Failures of workers that no restart has mended, as one line with the cure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from train import metrics
from train.checkpoint import checkpoints
from train.errors import FINAL, StoppedError, WorkersFailedError

TRACEBACKS = "failure.txt"
LESS_MEMORY = (
    "lower trainer.batch_size and raise trainer.accumulation, or set "
    "trainer.gradient_checkpointing=true"
)
# Errors of the others when one has gone: not why the run failed.
CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was ab")


def reason(error: Exception) -> str:
    """Return an error in one short line; Ray and torch explain at length."""
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def explain(failed: TrainingFailedError, run_dir: Path) -> Exception:
    """Return what ended a run: a final error itself, or one line on the workers' failures.

    Their tracebacks go into `failure.txt` in the run's folder.
    """
    cause: Exception = failed
    while isinstance(cause, ControllerError):
        cause = cause.controller_failure
    if isinstance(cause, FINAL):
        return cause
    (run_dir / TRACEBACKS).write_text(f"{failed}\n")
    if isinstance(cause, WorkerGroupError):
        rank, first = _first(cause.worker_failures)
        line = f"worker {rank}: {reason(first)}{_cure(first)}"
    else:
        line = reason(cause)
    kept = checkpoints(run_dir)
    step = f"from {kept[0].name}" if kept else "from the beginning: it has no checkpoint yet"
    return WorkersFailedError(
        f"{line}; {run_dir / TRACEBACKS} has all of it; trainer.run_name={run_dir.name} goes on "
        f"{step}"
    )


def record_end(run_dir: Path, error: Exception) -> None:
    """Add what ended a run to its records, unless a worker's failure is there or it was asked."""
    if not isinstance(error, (StoppedError, WorkersFailedError)):
        with suppress(OSError):  # the disk may be full
            metrics.append(run_dir, {"failure": str(error)})


def _first(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """Return the worker that failed first, as far as its error tells."""
    ranks = sorted(failures)
    causes = [r for r in ranks if not any(part in str(failures[r]) for part in CONSEQUENCES)]
    rank = (causes or ranks)[0]
    return rank, failures[rank]


def _cure(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".lower()
    if "out of memory" in text or isinstance(error, MemoryError):
        return f"; {LESS_MEMORY}"
    if "actor" in type(error).__name__.lower():  # Ray's, of a process that has gone
        return f"; the process was killed, often for want of memory: if so, {LESS_MEMORY}"
    return ""
