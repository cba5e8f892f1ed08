"""Sweeps whose runs are written by the test instead of trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from llamahome.config import TrainRoot
from llamahome.models import ModelManager
from train.sweeps.halving import Halving
from train.sweeps.jobs import Job, Sweep, build_sweep
from train.sweeps.runner import SweepRunner


def job(root: TrainRoot, rate: float, **trainer: object) -> Job:
    """Make a job that differs from others in its learning rate."""
    settings = {"learning_rate": rate, "num_workers": 1, **trainer}
    changed = replace(root, trainer=replace(root.trainer, **settings))
    return Job(["data=chats", f"trainer.learning_rate={rate}"], changed)


def sweep_of(root: TrainRoot, manager: ModelManager, *rates: float, **trainer: object) -> Sweep:
    """Build a sweep of one run for each learning rate."""
    return build_sweep([job(root, rate, **trainer) for rate in rates], manager)


def run_dir(root: TrainRoot) -> Path:
    return Path(str(root.trainer.output_dir)) / str(root.trainer.run_name)


def runner(
    sweep: Sweep,
    manager: ModelManager,
    train: Callable[[TrainRoot, Console], None],
    *,
    cpus: int = 2,
    halving: Halving | None = None,
    console: Console | None = None,
) -> SweepRunner:
    """Make a runner for a machine of so many CPUs, without Ray."""

    @contextmanager
    def session(roots: Sequence[TrainRoot]) -> Iterator[Callable[[], Mapping[str, float]]]:
        yield lambda: {"CPU": cpus}

    return SweepRunner(
        sweep,
        manager=manager,
        console=console or Console(file=io.StringIO(), width=200),
        halving=halving,
        train=train,
        session=session,
    )
