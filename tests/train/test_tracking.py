"""Curves: each value once, in order, where the config says."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from llamahome.config import TrackingConfig
from tests.train.curves import logged
from tests.train.waiting import wait_for
from train import metrics
from train.tracking import track

TENSORBOARD = TrackingConfig(wandb="disabled", tensorboard=True)


def test_values_are_logged_by_step(tmp_path: Path) -> None:
    with track(TENSORBOARD, tmp_path, {}) as observe:
        observe({"step": 0, "eval_loss": 4.0})
        observe({"step": 1, "loss": 3.0, "grad_norm": 0.5, "kl": 0.25})
        observe({"failure": "worker 0: killed"})
    assert logged(tmp_path, "loss") == [(1, 3.0)]
    assert logged(tmp_path, "grad_norm") == [(1, 0.5)]
    assert logged(tmp_path, "kl") == [(1, 0.25)]  # a column of one objective
    assert logged(tmp_path, "eval_loss") == [(0, 4.0)]


def test_steps_repeated_after_a_restart_are_logged_once(tmp_path: Path) -> None:
    with track(TENSORBOARD, tmp_path, {}) as observe:
        for step in (1, 2, 3, 2, 3, 4):
            observe({"step": step, "loss": float(step)})
        observe({"step": 4, "eval_loss": 1.0})
    assert logged(tmp_path, "loss") == [(n, float(n)) for n in (1, 2, 3, 4)]
    assert logged(tmp_path, "eval_loss") == [(4, 1.0)]


def test_a_resumed_run_goes_on_where_its_records_end(tmp_path: Path) -> None:
    for step in (1, 2):
        metrics.append(tmp_path, {"step": step, "loss": 1.0})
    with track(TENSORBOARD, tmp_path, {}) as observe:
        for step in (2, 3):
            observe({"step": step, "loss": 1.0})
    assert logged(tmp_path, "loss") == [(3, 1.0)]


def test_wandb_writes_offline_into_the_run(tmp_path: Path) -> None:
    tracking = TrackingConfig(wandb="offline", tensorboard=False)
    for step in (1, 2):  # the second time the run is resumed
        with track(tracking, tmp_path, {"trainer": {"steps": 2}}) as observe:
            observe({"step": step, "loss": 0.123456789})
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{tmp_path.name}.wandb"))
    assert files
    # wandb's own process may write a file only after it has said that the run is finished.
    wait_for(lambda: all(b"0.123456789" in f.read_bytes() for f in files), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_runs_side_by_side_have_files_of_their_own(tmp_path: Path) -> None:
    tracking = TrackingConfig(wandb="offline", tensorboard=False)
    runs = {tmp_path / "one": 0.123456789, tmp_path / "two": 0.987654321}
    for directory in runs:
        directory.mkdir()
    with ExitStack() as stack:
        observers = [stack.enter_context(track(tracking, directory, {})) for directory in runs]
        for observe, loss in zip(observers, runs.values(), strict=True):
            observe({"step": 1, "loss": loss})
    for directory, loss in runs.items():
        (file,) = (directory / "wandb").glob(f"offline-run-*/run-{directory.name}.wandb")
        wait_for(partial(_holds, file, loss), tmp_path)
        other = next(each for each in runs.values() if each != loss)
        assert not _holds(file, other)


def _holds(file: Path, value: float) -> bool:
    return str(value).encode() in file.read_bytes()


def test_disabled_tracking_writes_nothing(tmp_path: Path) -> None:
    with track(TrackingConfig(wandb="disabled", tensorboard=False), tmp_path, {}) as observe:
        observe({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
