"""Whole runs on Ray: losses, restarts, resuming, export and logs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM

from cluster.session import ray_session
from llamahome.config import (
    ClusterConfig,
    ConfigError,
    DeepSpeedConfig,
    ModelConfig,
    PolicyConfig,
    TrackingConfig,
    TrainRoot,
)
from llamahome.data import DataError
from llamahome.models import load_model
from tests.train.curves import logged
from tests.train.reference import held_out_loss, training_losses
from tests.train.waiting import PATIENT_ENV, run, run_dir, start, wait_for
from train import metrics
from train.errors import WorkersFailedError
from train.pipeline import RAY_ENV, TrainingResult, train_model
from train.runs.environment import read_environment

pytestmark = [
    pytest.mark.ray,
    # Ray Data, which Ray Train imports, sets its own deprecated options.
    pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning:ray.data"),
    # PEFT uses an old name of transformers.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.timeout(3600),  # waits end when a run stands still (tests.train.waiting)
]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    """One local Ray for all runs of this module."""
    with ray_session(ClusterConfig(), min_cpus=2, env={**RAY_ENV, **PATIENT_ENV}):
        yield


def with_stage(root: TrainRoot, stage: int, **trainer: Any) -> TrainRoot:
    deepspeed = DeepSpeedConfig(zero_stage=stage)
    return replace(root, deepspeed=deepspeed, trainer=replace(root.trainer, **trainer))


def policy_in(folder: Path) -> PolicyConfig | None:
    policy = load_model(ModelConfig(name=str(folder))).policy
    return None if policy is None else policy.config


def test_zero1_with_accumulation_matches_plain_pytorch(root: TrainRoot, model_dir: Path) -> None:
    root = with_stage(root, 1, accumulation=2, batch_size=1, gradient_checkpointing=True)
    result = run(root)
    assert result.losses == pytest.approx(training_losses(root, model_dir), abs=TOLERANCE)


def test_zero2_run_from_curve_to_export(root: TrainRoot, model_dir: Path) -> None:
    """One run proves many claims: a run costs half a minute."""
    root = with_stage(root, 2)
    root = replace(root, tracking=TrackingConfig(wandb="offline", tensorboard=True))
    result = run(root)

    assert result.losses == pytest.approx(training_losses(root, model_dir), abs=TOLERANCE)
    assert result.loss_before == pytest.approx(held_out_loss(root, model_dir), abs=TOLERANCE)
    assert result.loss_after == pytest.approx(held_out_loss(root, result.model_dir), abs=TOLERANCE)
    assert result.loss_after < result.loss_before - 0.5
    assert (result.run_name, result.steps) == ("tiny", 8)
    assert result.tokens == metrics.read(result.run_dir)[-2]["tokens"]
    assert_plain_transformers_generates(result.model_dir)
    assert policy_in(result.model_dir) == root.policy
    assert_curves_are_logged(result)
    assert (result.run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert read_environment(result.run_dir)["torch"] == version("torch")
    assert_other_config_is_refused(root)
    assert_continues_by_name(root, result)


def assert_plain_transformers_generates(folder: Path) -> None:
    assert "hybrid" not in (folder / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    prompt = tokenizer("budget", return_tensors="pt")["input_ids"]
    answer = model.generate(inputs=prompt, max_new_tokens=4, min_new_tokens=4)
    assert answer.shape == (1, len("budget") + 4)


def assert_curves_are_logged(result: TrainingResult) -> None:
    steps = list(enumerate(result.losses, start=1))
    assert dict(logged(result.run_dir, "loss")) == pytest.approx(dict(steps))
    for name in ("eval_loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"):
        assert logged(result.run_dir, name)
    (offline,) = (result.run_dir / "wandb").glob("offline-run-*/run-tiny.wandb")
    assert all(str(loss).encode() in offline.read_bytes() for loss in result.losses)


def assert_other_config_is_refused(root: TrainRoot) -> None:
    other = replace(root, policy=replace(root.policy, budget=32))
    with pytest.raises(ConfigError, match=r"policy\.budget=32 \(was 24\)"):
        run(other)


def assert_continues_by_name(root: TrainRoot, first: TrainingResult) -> None:
    longer = replace(root, trainer=replace(root.trainer, steps=10))
    result = asyncio.run(train_model(longer, console=Console(file=io.StringIO())))
    assert result.losses[:8] == first.losses
    assert (len(result.losses), result.loss_before) == (10, first.loss_before)
    assert json.loads((result.run_dir / "run.json").read_text())["trainer"]["steps"] == 10
    assert result.loss_after == pytest.approx(held_out_loss(root, result.model_dir), abs=TOLERANCE)


def test_killed_worker_resumes_on_the_same_curve(root: TrainRoot, model_dir: Path) -> None:
    root = with_stage(root, 3, steps=12)
    directory = run_dir(root)
    result = killed_on_the_way(root, directory).result()

    records = metrics.read(directory)
    assert [record for record in records if "failure" in record]
    assert len([record for record in records if "loss" in record]) > 12  # some steps came twice
    assert result.losses == pytest.approx(training_losses(root, model_dir), abs=TOLERANCE)
    assert result.loss_after == pytest.approx(held_out_loss(root, result.model_dir), abs=TOLERANCE)
    assert len(list((directory / "checkpoints").iterdir())) == root.trainer.keep_checkpoints


def test_two_stages_resume_on_the_same_curves_wherever_they_are_killed(
    root: TrainRoot, model_dir: Path
) -> None:
    """The run fails at once, as when the driver dies, and is started again by its name."""
    sizes = {"dense_steps": 12, "steps": 12, "num_workers": 1}
    root = with_stage(root, 2, max_failures=0, **sizes)
    dense = replace(
        root,
        policy=PolicyConfig.dense(),
        trainer=replace(root.trainer, run_name="tiny-dense", dense_steps=0, steps=12),
    )
    for stage in (dense, root):
        training = killed_on_the_way(root, run_dir(stage))
        assert isinstance(training.exception(), WorkersFailedError)
        assert not (run_dir(stage) / "model").exists()
    written = (run_dir(dense) / "model" / "config.json").stat().st_mtime_ns
    result = run(root)
    assert (run_dir(dense) / "model" / "config.json").stat().st_mtime_ns == written

    assert result.dense is not None
    assert result.dense.losses == pytest.approx(training_losses(dense, model_dir), abs=TOLERANCE)
    assert policy_in(result.dense.model_dir) == dense.policy
    after_dense = training_losses(root, result.dense.model_dir)
    assert result.losses == pytest.approx(after_dense, abs=TOLERANCE)
    assert result.loss_before == pytest.approx(
        held_out_loss(root, result.dense.model_dir), abs=TOLERANCE
    )
    assert policy_in(result.model_dir) == root.policy


def test_the_teacher_of_the_second_stage_is_the_model_of_the_first(root: TrainRoot) -> None:
    lora = {"method": "lora", "learning_rate": 1e-2, "steps": 4, "num_workers": 1}
    recipe = {"dense_steps": 4, "kl_weight": 1.0, "anneal_steps": 1}
    result = run(with_stage(root, 2, **lora, **recipe))
    assert result.dense is not None
    assert result.dense.loss_after < result.dense.loss_before - 0.05  # it is not the base any more
    kl = metrics.series(metrics.read(result.run_dir), "kl")
    assert kl[1] == pytest.approx(0, abs=1e-4)  # fresh adapters, and nothing is evicted yet
    assert kl[4] > 0
    assert "kl" not in metrics.read(result.dense.run_dir)[1]


def killed_on_the_way(root: TrainRoot, directory: Path) -> Future[TrainingResult]:
    """Start a run, kill a worker once `directory` has a few steps, and wait for the run's end."""
    training = start(root)
    wait_for(lambda: training.done() or steps_done(directory) >= 1, directory)
    victim = newest_worker()  # looking for it takes longer than a step
    wait_for(lambda: training.done() or steps_done(directory) >= 5, directory)
    victim.kill()  # SIGKILL, so that it cannot react
    wait_for(training.done, directory)
    return training


def steps_done(directory: Path) -> int:
    return max(metrics.series(metrics.read(directory), "loss"), default=0)


def newest_worker() -> psutil.Process:
    """Return the worker that started last; those of earlier runs may still be ending."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process)
    return max(workers, key=psutil.Process.create_time)


@pytest.mark.parametrize(
    ("stage", "workers", "export", "precision"),
    [(2, 1, "adapter", "mixed"), (3, 2, "merged", "fp32")],
)
def test_lora_run_exports_what_it_trained(
    root: TrainRoot, stage: int, workers: int, export: str, precision: str
) -> None:
    lora = {"method": "lora", "export": export, "learning_rate": 1e-2, "steps": 4}
    recipe = {"kl_weight": 0.5, "anneal_steps": 1, "budget_jitter": 0.2, "precision": precision}
    root = with_stage(root, stage, num_workers=workers, **lora, **recipe)
    result = run(root)
    records = metrics.read(result.run_dir)
    ce, kl, loss = (metrics.series(records, name) for name in ("ce", "kl", "loss"))
    assert all(loss[step] == pytest.approx(ce[step] + 0.5 * kl[step]) for step in range(1, 5))
    assert kl[1] == pytest.approx(0, abs=1e-4)  # nothing is learned or evicted yet
    assert kl[4] > 0

    loaded = load_model(replace(root.model, name=str(result.model_dir)))
    assert policy_in(result.model_dir) == root.policy
    assert (result.model_dir / "adapter_config.json").exists() == (export == "adapter")
    merged = result.run_dir / "loaded"
    loaded.model.save_pretrained(merged)
    loaded.tokenizer.save_pretrained(merged)
    tolerance = 0.02 if precision == "mixed" else TOLERANCE
    assert result.loss_after == pytest.approx(held_out_loss(root, merged), abs=tolerance)
    assert result.loss_after < result.loss_before - 0.05


ROWS_OF_THE_DRIVER = """
import torch.distributed as dist

def get_custom_dataset(config, tokenizer, split):
    row = {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": [1, 2, 3]}
    if dist.is_initialized():
        del row["labels"]
    return [row] * 8
"""


def test_failing_worker_ends_the_run_and_says_why(root: TrainRoot, tmp_path: Path) -> None:
    """It is asked once: another worker would fail as this one did."""
    rows = tmp_path / "rows.py"
    rows.write_text(ROWS_OF_THE_DRIVER)
    data = replace(root.data, format="custom", train_file=str(rows))
    root = with_stage(replace(root, data=data), 1, num_workers=1, max_failures=2)
    with pytest.raises(DataError, match=r"rows\.py: train row 0: labels is missing"):
        run(root)
    directory = run_dir(root)
    assert not [record for record in metrics.read(directory) if "loss" in record]
    assert not (directory / "model").exists()
