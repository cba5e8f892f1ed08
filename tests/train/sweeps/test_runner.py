"""Runs side by side: how many, in which order, and how each ends; without Ray."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from llamahome.config import SearchConfig, TrainRoot
from llamahome.models import ModelManager
from tests.train.sweeps.sweeping import job, run_dir, runner, sweep_of
from train import metrics
from train.errors import DivergedError, StoppedError
from train.runs.sweeps import read_sweep
from train.stopping import REQUEST
from train.sweeps.halving import Halving
from train.sweeps.jobs import State, Sweep, build_sweep

LIMIT_S = 60.0


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until `happened`; fail after a time that no busy machine needs."""
    until = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def finish(root: TrainRoot) -> None:
    """Leave what a finished run leaves."""
    steps = root.trainer.steps
    metrics.append(run_dir(root), {"step": steps, "loss": 1.0, "tokens_per_second": 1.0})
    metrics.append(run_dir(root), {"step": steps, "eval_loss": root.trainer.learning_rate})
    (run_dir(root) / "model").mkdir()


def until_asked(root: TrainRoot) -> None:
    """Wait as a run does whose driver will ask for its end, save, and end."""
    wait_for((run_dir(root) / REQUEST).exists)
    (run_dir(root) / "checkpoints" / "step-000005").mkdir(parents=True, exist_ok=True)
    raise StoppedError("stopped after step 5 and saved")


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_as_many_runs_train_at_once_as_there_are_cpus(
    root: TrainRoot, manager: ModelManager, cpus: int, at_once: int
) -> None:
    """The first runs wait for each other, so a runner that starts fewer would not end."""
    together = threading.Barrier(at_once, timeout=LIMIT_S)
    lock, running, most, started = threading.Lock(), 0, 0, 0

    def train(root: TrainRoot, console: Console) -> None:
        nonlocal running, most, started
        with lock:
            running, started = running + 1, started + 1
            most, meets = max(most, running), started <= at_once
        if meets:
            together.wait()
        with lock:
            running -= 1
        finish(root)

    sweep = sweep_of(root, manager, 1e-4, 1e-3, 1e-2, 1e-1)
    runner(sweep, manager, train, cpus=cpus).run()
    assert most == at_once
    assert [each.state for each in sweep.jobs] == [State.FINISHED] * 4


def test_a_failure_leaves_the_others_alone_and_is_tried_again(
    root: TrainRoot, manager: ModelManager
) -> None:
    trained: list[str] = []

    def train(root: TrainRoot, console: Console) -> None:
        trained.append(str(root.trainer.run_name))
        if root.trainer.learning_rate == 1e-3:
            raise DivergedError("the loss is nan")
        if root.trainer.learning_rate == 1e-2:
            raise RuntimeError("a bug\nin many lines")
        finish(root)

    jobs = [job(root, rate) for rate in (1e-4, 1e-3, 1e-2)]
    jobs.append(job(root, 1e-1, num_workers=1, batch_size=64))  # more than there are records
    sweep = build_sweep(jobs, manager)
    runner(sweep, manager, train).run()
    assert [each.outcome for each in sweep.jobs[:3]] == [
        "finished",
        "failed: the loss is nan",
        "failed: RuntimeError: a bug",
    ]
    assert sweep.jobs[3].state == State.REFUSED
    assert "trainer.batch_size" in sweep.jobs[3].reason
    assert sorted(trained) == ["tiny-01", "tiny-02", "tiny-03"]
    assert [run.state for run in read_sweep(sweep.directory)] == [j.outcome for j in sweep.jobs]

    again = sweep_of(root, manager, 1e-4, 1e-3, 1e-2)
    runner(again, manager, lambda root, console: finish(root)).run()
    assert [each.state for each in again.jobs] == [State.FINISHED] * 3


def test_runs_that_fall_behind_end_early_and_stay_ended(
    root: TrainRoot, manager: ModelManager
) -> None:
    search = SearchConfig(samples=3, space={"a": "x"}, grace=5)

    def train(root: TrainRoot, console: Console) -> None:
        metrics.append(run_dir(root), {"step": 5, "eval_loss": root.trainer.learning_rate})
        if root.trainer.learning_rate > 1e-4:
            until_asked(root)
        finish(root)

    def searched(train: Callable[[TrainRoot, Console], None]) -> Sweep:
        sweep = sweep_of(root, manager, 1e-4, 1e-3, 1e-2)
        halving = Halving(search, root.trainer.steps, sweep.directory)
        runner(sweep, manager, train, cpus=1, halving=halving).run()
        return sweep

    def never(root: TrainRoot, console: Console) -> None:
        raise AssertionError("it is trained again")

    for how in (train, never):
        sweep = searched(how)
        assert [each.state for each in sweep.jobs] == [State.FINISHED, State.EARLY, State.EARLY]
        assert "tiny-01 had 0.0001" in sweep.jobs[2].reason
        assert not list(run_dir(root).parent.glob(f"*/{REQUEST}"))


def test_ctrl_c_lets_all_runs_save_and_starts_no_other(
    root: TrainRoot, manager: ModelManager
) -> None:
    """The second of two runs that train presses it."""
    begun = threading.Barrier(2, timeout=LIMIT_S)
    trained: list[str] = []

    def train(root: TrainRoot, console: Console) -> None:
        trained.append(str(root.trainer.run_name))
        begun.wait()
        if root.trainer.learning_rate == 1e-3:
            os.kill(os.getpid(), signal.SIGINT)
        until_asked(root)

    said = io.StringIO()
    sweep = sweep_of(root, manager, 1e-4, 1e-3, 1e-2)
    before = signal.getsignal(signal.SIGINT)
    runner(sweep, manager, train, console=Console(file=said, width=200, markup=False)).run()
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(trained) == ["tiny-01", "tiny-02"]
    assert [each.state for each in sweep.jobs] == [State.STOPPED, State.STOPPED, State.WAITING]
    assert "saving checkpoints before leaving" in said.getvalue()

    # The same command goes on with all of them.
    again = sweep_of(root, manager, 1e-4, 1e-3, 1e-2)
    runner(again, manager, lambda root, console: finish(root)).run()
    assert [each.state for each in again.jobs] == [State.FINISHED] * 3


def test_a_second_ctrl_c_leaves_at_once(root: TrainRoot, manager: ModelManager) -> None:
    left = threading.Event()

    def train(root: TrainRoot, console: Console) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for((run_dir(root) / REQUEST).exists)
        os.kill(os.getpid(), signal.SIGINT)
        left.wait(LIMIT_S)

    sweep = sweep_of(root, manager, 1e-4, 1e-3)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(sweep, manager, train, cpus=1).run()
    finally:
        left.set()
    assert [each.state for each in sweep.jobs] == [State.STOPPED, State.WAITING]
    assert [run.state for run in read_sweep(sweep.directory)] == ["stopped", "waiting"]


def test_a_run_of_two_stages_is_followed_and_stopped_in_both(
    root: TrainRoot, manager: ModelManager
) -> None:
    dense: list[Path] = []

    def train(root: TrainRoot, console: Console) -> None:
        dense.append(run_dir(root).with_name("tiny-01-dense"))
        os.kill(os.getpid(), signal.SIGINT)
        wait_for((dense[0] / REQUEST).exists)
        until_asked(root)

    sweep = sweep_of(root, manager, 1e-4, 1e-3, dense_steps=3)
    runner(sweep, manager, train, cpus=1).run()
    assert (dense[0] / metrics.FILE_NAME).exists()
    assert [each.state for each in sweep.jobs] == [State.STOPPED, State.WAITING]


def test_lines_carry_the_names_of_their_runs(root: TrainRoot, manager: ModelManager) -> None:
    def train(root: TrainRoot, console: Console) -> None:
        console.print("step 1/8  [loss]\nwarning: x")
        finish(root)

    said = io.StringIO()
    sweep = sweep_of(root, manager, 1e-4, 1e-3)
    runner(sweep, manager, train, cpus=1, console=Console(file=said, width=200, markup=False)).run()
    assert said.getvalue().splitlines() == [
        line
        for name, rate in (("tiny-01", "0.0001"), ("tiny-02", "0.001"))
        for line in (
            f"{name}  starts: trainer.learning_rate={rate}",
            f"{name}  step 1/8  [loss]",
            f"{name}  warning: x",
            f"{name}  finished",
        )
    ]


def test_a_terminal_shows_a_bar_for_each_run_that_trains(
    root: TrainRoot, manager: ModelManager
) -> None:
    """Lines about steps are the bar's, other lines stay above it."""

    def train(root: TrainRoot, console: Console) -> None:
        metrics.append(run_dir(root), {"step": 3, "loss": 1.25, "tokens_per_second": 7.0})
        console.print("step 3/8  loss 1.250\nwarning: x")
        wait_for(lambda: "loss 1.250  7 tokens/s" in said.getvalue())
        finish(root)

    said = io.StringIO()
    sweep = sweep_of(root, manager, 1e-4, 1e-3)
    console = Console(
        file=said, width=200, force_terminal=True, highlight=False, markup=False, color_system=None
    )
    runner(sweep, manager, train, cpus=1, console=console).run()
    shown = said.getvalue()
    assert "tiny-02  trainer.learning_rate=0.001" in shown
    assert "3/8" in shown
    assert "tiny-01  warning: x" in shown
    assert "tiny-01  step 3/8" not in shown
