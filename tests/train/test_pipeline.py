"""Whole runs on Ray: losses, restarts, resuming, export and logs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
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
from llamahome.models import ModelManager, load_model
from tests.train.curves import logged
from tests.train.reference import held_out_loss, training_losses
from tests.train.waiting import PATIENT_ENV, run, run_dir, start, wait_for
from train import ActiveRun, metrics, train_model
from train.errors import WorkersFailedError
from train.pipeline import RAY_ENV, TrainingResult
from train.runs.environment import read_environment
from train.sweeps.jobs import Job, State, build_sweep
from train.sweeps.runner import SweepRunner

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
    records = metrics.read(result.run_dir)
    assert result.tokens == metrics.series(records, "tokens")[8]
    assert all(0 < share < 1 for share in metrics.series(records, "mfu").values())
    assert all(len(each) == 2 for each in metrics.series(records, "memory_gb").values())
    assert metrics.series(records, "seconds_left")[8] == 0
    assert list(metrics.series(records, "checkpoint")) == [3, 6, 8]
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
    for name in ("eval_loss", "learning_rate", "grad_norm", "tokens", "mfu", "memory_gb/1"):
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
    assert not metrics.series(metrics.read(result.dense.run_dir), "kl")


def test_runs_side_by_side_are_those_that_train_alone(
    root: TrainRoot, model_dir: Path, tmp_path: Path
) -> None:
    """A third one fails in its worker, and leaves them alone."""
    rows = tmp_path / "rows.py"
    rows.write_text(ROWS_OF_THE_DRIVER)
    small = with_stage(root, 2, num_workers=1, eval_every=0, checkpoint_every=0, steps=4)
    bad = replace(small, data=replace(small.data, format="custom", train_file=str(rows)))
    rates = (3e-3, 1e-3)
    alone = [replace(small, trainer=replace(small.trainer, learning_rate=rate)) for rate in rates]
    jobs = [Job([f"number={n}"], each) for n, each in enumerate((alone[0], bad, alone[1]))]
    manager = ModelManager(tmp_path / "cache")
    sweep = build_sweep(jobs, manager)
    said = io.StringIO()
    console = Console(file=said, markup=False, highlight=False, soft_wrap=True)
    SweepRunner(sweep, manager=manager, console=console).run()

    assert [job.state for job in sweep.jobs] == [State.FINISHED, State.FAILED, State.FINISHED]
    assert "rows.py: train row 0: labels is missing" in sweep.jobs[1].reason
    lines = said.getvalue().splitlines()
    starts = [n for n, line in enumerate(lines) if line.split("  ")[1].startswith("starts")]
    ends = [n for n, line in enumerate(lines) if line.split("  ")[1].startswith(("fin", "fail"))]
    assert starts[1] < ends[0] < starts[2]  # two on two CPUs, and the third in the place of one
    for job, each in zip((sweep.jobs[0], sweep.jobs[2]), alone, strict=True):
        losses = metrics.series(metrics.read(sweep.run_dir(job)), "loss")
        expected = training_losses(each, model_dir)
        assert list(losses.values()) == pytest.approx(expected, abs=TOLERANCE)
        assert (sweep.run_dir(job) / "model").is_dir()


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


def example(root: TrainRoot) -> str:
    """Return the program of docs/training.md with the tests' model and many steps."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    small = {
        "model.name": root.model.name,
        "trainer.output_dir": root.trainer.output_dir,
        "trainer.num_workers": 1,
        "trainer.checkpoint_every": 0,
        "data.context_length": 64,
        "tracking": "disabled",
    }
    more = ", ".join(f'"{key}={value}"' for key, value in small.items())
    assert '"trainer.steps=60"' in program
    program = program.replace('"trainer.steps=60"', f'"trainer.steps=100000", {more}')
    assert "StopAt(0.2)" in program
    return program.replace("StopAt(0.2)", "StopAt(100.0)")  # the first held-out loss stops it


class Cancels:
    """A callback that cancels the task that trains, from the driver's thread."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.task: asyncio.Task[TrainingResult] | None = None

    def on_step(self, run: ActiveRun, record: metrics.Record) -> None:
        assert self.task is not None
        self.steps.append(record["step"])
        self.task.get_loop().call_soon_threadsafe(self.task.cancel)


def test_the_program_of_the_docs_is_stopped_and_goes_on_until_it_is_cancelled(
    root: TrainRoot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(str(root.trainer.output_dir)).parent)
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(example(root), "docs/training.md", "exec"), program)
    result = program["result"]
    assert result.stopped
    assert not result.model_dir.exists()
    assert result.metrics["step"] == result.steps < 100_000
    assert f"{result.run_dir} {result.steps} " in capsys.readouterr().out

    async def cancelled(callback: Cancels) -> None:
        records = [program["sum_of"](n) for n in range(400)]
        callback.task = asyncio.ensure_future(
            train_model(program["overrides"], records, [callback])
        )
        with pytest.raises(asyncio.CancelledError):
            await callback.task

    callback = Cancels()
    asyncio.run(cancelled(callback))
    assert callback.steps[0] == result.steps + 1
    newest = max((result.run_dir / "checkpoints").glob("step-*"))
    assert int(newest.name.removeprefix("step-")) >= callback.steps[-1]
