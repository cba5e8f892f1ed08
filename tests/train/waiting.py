"""Runs in a thread, with waits that last as long as the run's files advance."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from rich.console import Console

from llamahome.config import TrainRoot
from llamahome.models import ModelManager
from train import metrics
from train.pipeline import TrainingPipeline, TrainingResult

STALLED_S = 900  # a run's start writes nothing and takes minutes on a busy machine
# On a busy machine Ray's workers starve: it gives them a niceness of 15, and OpenMP's threads spin.
PATIENT_ENV = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


def run_dir(root: TrainRoot) -> Path:
    assert root.trainer.output_dir is not None
    return Path(root.trainer.output_dir) / str(root.trainer.run_name)


def start(root: TrainRoot) -> Future[TrainingResult]:
    """Start a run in a thread of its own."""
    manager = ModelManager(run_dir(root).parent / "cache")
    pipeline = TrainingPipeline(root, manager=manager, console=Console(file=io.StringIO()))
    result: Future[TrainingResult] = Future()

    def work() -> None:
        try:
            result.set_result(pipeline.run())
        except BaseException as error:  # noqa: BLE001  # whatever it is, the waiting test raises it
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result


def wait_for(happened: Callable[[], bool], directory: Path) -> None:
    """Wait until `happened`; fail when the run in `directory` has not advanced for STALLED_S."""
    seen, since = None, time.monotonic()
    while not happened():
        if (now := _progress(directory)) != seen:
            seen, since = now, time.monotonic()
        assert time.monotonic() - since < STALLED_S, f"{directory} stands still at {seen}"
        time.sleep(0.02)


def run(root: TrainRoot) -> TrainingResult:
    result = start(root)
    wait_for(result.done, run_dir(root))
    return result.result()


def _progress(directory: Path) -> tuple[int, list[str]]:
    """Return the size of the run's records, and the names in its folder and of checkpoints."""
    records = directory / metrics.FILE_NAME
    names = [path.name for part in (".", "checkpoints") for path in (directory / part).glob("*")]
    return records.stat().st_size if records.exists() else 0, sorted(names)
