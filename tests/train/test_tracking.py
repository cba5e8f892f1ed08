"""Curves: each value once, in order, where the config says."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from llamahome.config import ConfigError, TrackingConfig
from tests.ports import free_ports
from tests.train.curves import logged
from tests.train.waiting import wait_for
from train import metrics
from train.errors import StoppedError
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


def test_figures_of_each_worker_are_curves_of_their_own(tmp_path: Path) -> None:
    with track(TENSORBOARD, tmp_path, {}) as observe:
        observe({"peak_flops": 1e12, "peak": "2 x CPU"})
        observe({"step": 1, "memory_gb": [1.5, 2.5], "mfu": 0.25})
        observe({"step": 1, "checkpoint": "step-000001"})
    assert logged(tmp_path, "memory_gb/0") == [(1, 1.5)]
    assert logged(tmp_path, "memory_gb/1") == [(1, 2.5)]
    assert logged(tmp_path, "mfu") == [(1, 0.25)]


def sampled(run_dir: Path, step: int) -> metrics.Record:
    """Write an evaluation's answers as workers do, and return its record."""
    sample = {"step": step, "prompt": "who?", "answer": f"answer {step}", "tokens": 2}
    metrics.append(run_dir, sample, metrics.SAMPLES)
    return {"step": step, "eval_loss": 1.0}


def test_answers_are_texts_of_tensorboard(tmp_path: Path) -> None:
    with track(TENSORBOARD, tmp_path, {}) as observe:
        for step in (0, 4):
            observe(sampled(tmp_path, step))
        observe(sampled(tmp_path, 4))  # after a restart
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    texts = events.Tensors("samples/0/text_summary")
    assert [event.step for event in texts] == [0, 4]
    assert texts[1].tensor_proto.string_val[0] == b"**who?**\n\nanswer 4"


def test_answers_are_a_table_of_wandb(tmp_path: Path) -> None:
    with track(TrackingConfig(wandb="offline", tensorboard=False), tmp_path, {}) as observe:
        for step in (0, 4):
            observe(sampled(tmp_path, step))
    tables = [json.loads(file.read_text()) for file in tmp_path.rglob("*.table.json")]
    last = max(tables, key=lambda table: len(table["data"]))
    assert last["columns"] == ["step", "prompt", "answer"]
    assert last["data"] == [[0, "who?", "answer 0"], [4, "who?", "answer 4"]]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that share one MLflow database, which takes seconds to make."""
    return tmp_path_factory.mktemp("runs")


def test_mlflow_has_curves_and_config(runs_dir: Path) -> None:
    run_dir = runs_dir / "small"
    run_dir.mkdir()
    tracking = TrackingConfig(wandb="disabled", tensorboard=False, mlflow="local", project="mine")
    settings = {"trainer": {"steps": 2, "lora": {"r": 4}}, "policy": {"name": "h2o"}}
    for step in (1, 2):  # the second time the run is resumed
        with track(tracking, run_dir, settings) as observe:
            observe({"step": step, "loss": 0.5 * step, "memory_gb": [1.5]})
        metrics.append(run_dir, {"step": step, "loss": 0.5 * step, "memory_gb": [1.5]})
        settings = {"trainer": {"steps": 3}}
    with pytest.raises(StoppedError), track(tracking, run_dir, settings):
        raise StoppedError("Ctrl-C")

    client = MlflowClient(tracking_uri=f"sqlite:///{runs_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 1.0)]
    assert run.data.metrics == {"loss": 1.0, "memory_gb/0": 1.5}
    assert run.data.params == {"trainer.steps": "2", "trainer.lora.r": "4", "policy.name": "h2o"}
    assert (run.info.run_name, run.info.status) == ("small", "KILLED")


def test_an_mlflow_server_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    tracking = TrackingConfig(wandb="disabled", tensorboard=False, mlflow=uri)
    with (
        pytest.raises(ConfigError, match=r"tracking\.mlflow='http.*start the server") as refused,
        track(tracking, tmp_path, {}),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_an_mlflow_that_fails_on_the_way_does_not_end_the_run(
    runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = runs_dir / "removed"
    run_dir.mkdir()
    tracking = TrackingConfig(wandb="disabled", tensorboard=True, mlflow="local")
    with track(tracking, run_dir, {}) as observe:
        observe({"step": 1, "loss": 1.0})
        client = MlflowClient(tracking_uri=f"sqlite:///{runs_dir / 'mlflow.db'}")
        client.delete_run((run_dir / "mlflow_run_id").read_text())
        for step in (2, 3):
            observe({"step": step, "loss": 1.0})
    assert "MLflow has this run only up to step 1" in caplog.text
    assert len(logged(run_dir, "loss")) == 3
