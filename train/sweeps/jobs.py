"""Jobs of a sweep: what each run changes, its name, and what became of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from llamahome.config import ConfigError, TrainRoot
from llamahome.models import ModelManager
from train.runs.folder import RUN_FILE, RunsError, SavedRun, read_run

# They say how a sweep is computed and watched, and do not change its results.
AROUND = ("cluster", "tracking")


class State(StrEnum):
    """State of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    EARLY = "stopped early"
    STOPPED = "stopped"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: its arguments, also those that all runs share.
        root: its config; None when it is refused for it.
        state, reason: what became of it, and why.
    """

    overrides: list[str]
    root: TrainRoot | None
    state: State = State.WAITING
    reason: str = ""

    @property
    def name(self) -> str | None:
        return self.root.trainer.run_name if self.root else None

    @property
    def outcome(self) -> str:
        """State and reason in one line."""
        return f"{self.state}: {self.reason}" if self.reason else str(self.state)


@dataclass(frozen=True)
class Sweep:
    """Jobs under one name.

    Attributes:
        directory: the sweep's own folder, next to those of its runs.
    """

    directory: Path
    jobs: list[Job]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def is_refused(self) -> bool:
        """Whether no job can be trained, so that nothing is written."""
        return all(job.state == State.REFUSED for job in self.jobs)

    def run_dir(self, job: Job) -> Path:
        """Return the folder of a job's run."""
        return self.directory.parent / str(job.name)

    def saved(self, job: Job) -> SavedRun | None:
        """Return a job's run as its folder has it; None before it was prepared."""
        directory = self.run_dir(job)
        if job.root is None or not (directory / RUN_FILE).is_file():
            return None
        try:
            return read_run(directory)
        except RunsError:
            return None

    def differing(self, job: Job) -> list[str]:
        """Return the arguments in which a job differs from the sweep's other jobs."""
        shared = set.intersection(*(set(each.overrides) for each in self.jobs))
        if len(self.jobs) == 1:
            return []
        return [each for each in job.overrides if each not in shared]


def build_sweep(jobs: Sequence[Job], manager: ModelManager) -> Sweep:
    """Name a sweep and its runs, and find those that are finished.

    `trainer.run_name` names the sweep, and its runs are numbered; without one the name is a digest
    of all configs, so that the same command finds its runs again. Names that differ between all
    jobs are kept.

    Raises:
        ConfigError: for jobs that cannot run on one Ray into one folder, or for a name in use.
    """
    roots = [job.root for job in jobs if job.root is not None]
    if not roots:
        return Sweep(manager.runs_dir / "sweep", list(jobs))
    _check_equal("cluster", [root.cluster for root in roots])
    _check_equal("trainer.output_dir", [root.trainer.output_dir for root in roots])
    place = roots[0].trainer.output_dir
    runs_dir = Path(place).expanduser().resolve() if place else manager.runs_dir
    sweep = Sweep(runs_dir / _name(roots, len(jobs)), list(jobs))
    if (sweep.directory / RUN_FILE).exists():
        raise ConfigError(
            f"trainer.run_name={sweep.name!r} is a run in {runs_dir}; choose another for the sweep"
        )
    _name_runs(sweep)
    for job in sweep.jobs:
        if job.state == State.WAITING and _is_finished(sweep, job):
            job.state = State.FINISHED
    return sweep


def _check_equal(key: str, values: Sequence[object]) -> None:
    different = next((value for value in values if value != values[0]), values[0])
    if different != values[0]:
        raise ConfigError(
            f"{key} cannot differ between the runs of a sweep: they share one Ray and one folder"
        )


def _name(roots: Sequence[TrainRoot], jobs: int) -> str:
    names = {root.trainer.run_name for root in roots}
    if len(names) == 1 and None not in names:
        return str(names.pop())
    configs = [
        {key: value for key, value in asdict(root).items() if key not in AROUND} for root in roots
    ]
    digest = hashlib.sha256(json.dumps([configs, jobs]).encode()).hexdigest()
    return f"sweep-{digest[:8]}"


def _name_runs(sweep: Sweep) -> None:
    given = [job.name for job in sweep.jobs if job.root is not None]
    if len(given) > 1 and len(set(given)) == len(given):
        return
    name, times = Counter(given).most_common(1)[0]
    if name is not None and len(set(given)) > 1:
        raise ConfigError(
            f"trainer.run_name={name!r} names {times} runs of this sweep; give one name for all, "
            "and the runs are numbered"
        )
    for number, job in enumerate(sweep.jobs, start=1):
        if job.root is not None:
            trainer = replace(job.root.trainer, run_name=f"{sweep.name}-{number:02d}")
            job.root = replace(job.root, trainer=trainer)


def _is_finished(sweep: Sweep, job: Job) -> bool:
    """Return whether a job's run has exported its model after the steps that are asked for."""
    saved = sweep.saved(job)
    if saved is None or job.root is None or saved.state != "finished":
        return False
    trainer = job.root.trainer
    early = trainer.early_stopping_patience > 0 and saved.value("trainer.steps") == trainer.steps
    return saved.steps >= trainer.steps or early
