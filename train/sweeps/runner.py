"""Runs of a sweep side by side on one Ray, as many as its CPUs and GPUs allow.

Each run is the same `TrainingPipeline` as alone, in a thread: its work is in Ray's processes.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import ray
from rich.console import Console

from cluster.session import ray_session
from llamahome.config import TrainerConfig, TrainRoot
from llamahome.models import ModelManager
from train import metrics
from train.checkpoint import checkpoints
from train.errors import FINAL, StoppedError
from train.pipeline import RAY_ENV, TrainingPipeline
from train.preflight import check_machine
from train.run import prepare_run
from train.runs.sweeps import SweptRun, write_sweep
from train.stopping import REQUEST
from train.sweeps.display import Display, show_sweep
from train.sweeps.halving import Halving
from train.sweeps.jobs import Job, State, Sweep

WAIT_S = 0.2  # between two looks at Ctrl-C
Ended = tuple[Job, State, str]
Resources = Callable[[], Mapping[str, float]]
Train = Callable[[TrainRoot, Console], None]
Session = Callable[[Sequence[TrainRoot]], AbstractContextManager[Resources]]


@contextmanager
def one_ray(roots: Sequence[TrainRoot]) -> Iterator[Resources]:
    """Connect to the Ray of all runs, and yield what returns the resources of its nodes."""
    with ExitStack() as stack:
        if not ray.is_initialized():
            cpus = max(_cpus(root.trainer) for root in roots)
            stack.enter_context(ray_session(roots[0].cluster, min_cpus=cpus, env=RAY_ENV))
        yield ray.cluster_resources


class SweepRunner:
    """One sweep from its first unfinished run to its last.

    Args:
        manager: finds models and knows where runs are.
        halving: ends runs of a search early; None takes all to their end.
        train: trains one run; None takes a `TrainingPipeline`.
        session: opens the Ray of all runs; None takes `one_ray`.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        manager: ModelManager,
        console: Console,
        halving: Halving | None = None,
        train: Train | None = None,
        session: Session | None = None,
    ) -> None:
        self.sweep, self.manager, self.console = sweep, manager, console
        self.halving = halving
        self._pipeline, self._session = train or self._run_pipeline, session or one_ray
        self.asked_to_stop = False
        self._ended: queue.Queue[Ended] = queue.Queue()

    def run(self) -> None:
        """Train the jobs that are waiting; their states say what became of them.

        A run that fails leaves the others alone. The first Ctrl-C lets all save and ends the sweep.

        Raises:
            KeyboardInterrupt: after the second Ctrl-C.
        """
        self._prepare()
        waiting = deque(job for job in self.sweep.jobs if job.state == State.WAITING)
        try:
            if waiting:
                self._train_all(waiting)
        finally:
            for job in self.sweep.jobs:
                if job.state == State.RUNNING:  # it is cut off
                    job.state = State.STOPPED
            self._save()

    def _prepare(self) -> None:
        """Refuse what cannot train before Ray starts, and look up earlier decisions."""
        for job in self.sweep.jobs:
            if job.state != State.WAITING or job.root is None:
                continue
            reason = self._why_early(job)
            if reason and checkpoints(self.sweep.run_dir(job)):  # not killed before it saved
                job.state, job.reason = State.EARLY, reason
                continue
            try:
                if job.root.cluster.address == "local" and not ray.is_initialized():
                    check_machine(job.root.trainer, job.root.cluster)
                prepare_run(job.root, self.manager)
            except FINAL as error:
                job.state, job.reason = State.REFUSED, str(error)
        self._save()

    def _train_all(self, waiting: deque[Job]) -> None:
        running: list[Job] = []
        with ExitStack() as stack:
            display = stack.enter_context(show_sweep(self.sweep, self.console))
            have = stack.enter_context(self._session([_root(job) for job in waiting]))
            stack.enter_context(self._ctrl_c_saves_all())
            while (waiting and not self.asked_to_stop) or running:
                while waiting and not self.asked_to_stop and _fits(waiting[0], running, have()):
                    running.append(waiting.popleft())
                    self._start(running[-1], display)
                if self.asked_to_stop:
                    for job in running:  # again, since a run that starts forgets older requests
                        self._ask(job)
                self._take_ended(running, display)

    def _take_ended(self, running: list[Job], display: Display) -> None:
        try:
            job, state, reason = self._ended.get(timeout=WAIT_S)
        except queue.Empty:
            return
        job.state, job.reason = state, reason
        running.remove(job)
        (self.sweep.run_dir(job) / REQUEST).unlink(missing_ok=True)
        display.ended(job)
        self._save()

    def _start(self, job: Job, display: Display) -> None:
        job.state = State.RUNNING
        trainer = _root(job).trainer
        display.started(job, trainer.dense_steps + trainer.steps)
        self._save()
        threading.Thread(target=self._train, args=(job, display), daemon=True).start()

    def _train(self, job: Job, display: Display) -> None:
        state, reason = State.FINISHED, ""
        try:
            with ExitStack() as stack:
                for directory, observers in self._observers(job, display).items():
                    directory.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(metrics.follow(directory, observers))
                self._pipeline(_root(job), display.console_for(job))
        except StoppedError:
            reason = self._why_early(job)
            state = State.EARLY if reason else State.STOPPED
        except FINAL as error:
            state, reason = State.FAILED, str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other runs go on
            state, reason = State.FAILED, f"{type(error).__name__}: {_first_line(error)}"
        finally:
            self._ended.put((job, state, reason))

    def _run_pipeline(self, root: TrainRoot, console: Console) -> None:
        TrainingPipeline(root, manager=self.manager, console=console).run()

    def _observers(self, job: Job, display: Display) -> dict[Path, list[metrics.Observer]]:
        """Return who follows the records of a run and of its first stage, by folder."""
        directory, dense_steps = self.sweep.run_dir(job), _root(job).trainer.dense_steps
        observers = [display.observer(job, dense_steps), lambda record: self._judge(job, record)]
        if not dense_steps:
            return {directory: observers}
        dense = directory.with_name(f"{directory.name}-dense")
        return {directory: observers, dense: [display.observer(job, 0)]}

    def _why_early(self, job: Job) -> str:
        return self.halving.early.get(str(job.name), "") if self.halving else ""

    def _judge(self, job: Job, record: metrics.Record) -> None:
        if self.halving is not None and self.halving.observe(str(job.name), record):
            self._ask(job)

    def _ask(self, job: Job) -> None:
        """Ask a run, in whichever stage it is, to save and to end."""
        directory = self.sweep.run_dir(job)
        (directory / REQUEST).touch()
        dense = directory.with_name(f"{directory.name}-dense")
        if _root(job).trainer.dense_steps and dense.is_dir():
            (dense / REQUEST).touch()

    @contextmanager
    def _ctrl_c_saves_all(self) -> Iterator[None]:
        """Turn the first Ctrl-C of the block into requests to all, the second into an error."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: FrameType | None) -> None:
            if self.asked_to_stop:
                raise KeyboardInterrupt
            self.asked_to_stop = True
            self.console.print("saving checkpoints before leaving; Ctrl-C again leaves at once")

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _save(self) -> None:
        if self.sweep.is_refused:
            return
        write_sweep(
            self.sweep.directory,
            [SweptRun(job.name, self.sweep.differing(job), job.outcome) for job in self.sweep.jobs],
        )


def _root(job: Job) -> TrainRoot:
    assert job.root is not None  # refused jobs are not trained
    return job.root


def _cpus(trainer: TrainerConfig) -> int:
    return trainer.num_workers * trainer.cpus_per_worker


def _fits(job: Job, running: list[Job], have: Mapping[str, float]) -> bool:
    """Return whether there are CPUs and GPUs for one more run; alone, a run waits within Ray."""
    if not running:
        return True
    trainers = [_root(each).trainer for each in (*running, job)]
    cpus = sum(map(_cpus, trainers))
    gpus = sum(trainer.num_workers for trainer in trainers if trainer.use_gpu)
    return cpus <= have.get("CPU", 0) and gpus <= have.get("GPU", 0)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
