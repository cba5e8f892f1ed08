"""Warnings and failures of workers, as records of the run.

Ray does not forward its processes' output (`cluster.session`), so workers and the controller write
to the run's records what the user should see.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from train import metrics
from train.errors import FINAL
from train.failures import reason

NO_NEWS = (
    "OVERFLOW! Skipping step",  # train.divergence says so with the step's number
    "MPU is not provided",  # tensor parallelism, said when a universal checkpoint is loaded
)


class RecordFailures(UserCallback):
    """A callback in Ray's controller, which outlives the workers."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Record what failed; a failure that would come again ends the run here.

        Raises:
            Exception: the worker's, one of `train.errors.FINAL`. Ray restarts no workers after an
                error of its controller.
        """
        for rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, FINAL):
                raise error
            metrics.append(self.run_dir, {"failure": f"worker {rank}: {reason(error)}"})


class RecordWarnings(logging.Handler):
    """A log handler in a worker."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(logging.WARNING)
        self.run_dir = run_dir

    def emit(self, record: logging.LogRecord) -> None:
        if any(part in record.getMessage() for part in NO_NEWS):
            return
        metrics.append(self.run_dir, {"warning": f"{record.name}: {record.getMessage()}"})


def record_warnings(run_dir: Path) -> None:
    """Add this worker's warnings to the run's records."""
    handler = RecordWarnings(run_dir)
    for name in (None, "DeepSpeed"):  # DeepSpeed's logger does not propagate to the root
        logging.getLogger(name).addHandler(handler)
    # The driver has built the same rows and logged the same lines.
    logging.getLogger("train.data").setLevel(logging.ERROR)
