"""Fine-tuning under a policy, from a config to an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from cluster.session import ray_session
from llamahome.config import ConfigError, TrainerConfig, TrainRoot
from llamahome.models import ModelManager
from train import metrics
from train.callbacks import Callback, calling, check_callbacks
from train.checkpoint import find_intact
from train.errors import FINAL, MemoryFullError, StoppedError
from train.failures import explain, record_end
from train.full_disk import full_disk_ends
from train.logs import RecordFailures
from train.micro_batches import halve
from train.preflight import check_cluster, check_machine, slow_precision
from train.progress import plain_console, show_progress
from train.run import Run, dense_stage, prepare_run, second_stage
from train.runs.environment import write_environment
from train.runs.plots import draw_after_run
from train.stopping import in_a_thread, request_stop, signals_save
from train.tracking import track

# The controller notices late that workers have failed or ended: it polls every two seconds.
RAY_ENV = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        run_name, run_dir: name and folder of the run.
        model_dir: the exported Hugging Face folder, which carries the policy; not there yet for a
            run that was `stopped`.
        loss_before, loss_after: held-out loss under the policy, before and after training.
        steps, tokens: optimiser steps done and tokens read.
        losses: training loss of each step.
        metrics: the last value of each column of metrics.jsonl.
        stopped: it was asked to end, and has saved a checkpoint instead of a model.
        dense: result of the first stage, for a run of two.
    """

    run_name: str
    run_dir: Path
    model_dir: Path
    loss_before: float
    loss_after: float
    steps: int
    tokens: int
    losses: list[float]
    metrics: dict[str, Any]
    stopped: bool = False
    dense: TrainingResult | None = None


class TrainingPipeline:
    """One fine-tuning run.

    Args:
        root: its config.
        manager: finds the model and knows where runs live; None is the default one.
        console: shows progress; None is standard output.
        callbacks: objects that are called during the run.

    Raises:
        ConfigError: for a callback that nothing would call.
    """

    def __init__(
        self,
        root: TrainRoot,
        *,
        manager: ModelManager | None = None,
        console: Console | None = None,
        callbacks: Sequence[Callback | Any] = (),
    ) -> None:
        check_callbacks(callbacks)
        self.callbacks = callbacks
        self._current: Run | None = None
        self._stopping = False
        self.root = root
        self.manager = manager or ModelManager()
        self.console = console or plain_console()

    def run(self) -> TrainingResult:
        """Train, or resume the run that `trainer.run_name` names, and export the model.

        With `trainer.dense_steps` it trains a first stage, unless that has ended before, and then
        goes on from its model.

        Raises:
            ConfigError, DataError, ModelError: before any worker starts, with what to change.
            StoppedError: after Ctrl-C, SIGTERM, `stop`, or a callback that stops it.
            TrainingError: for damaged checkpoints, before any worker starts; for a run that
                diverges, has no space left or exports something else than it trained, without a
                restart; for workers that failed, after `trainer.max_failures` restarts.
        """
        if self.root.cluster.address == "local" and not ray.is_initialized():
            check_machine(self.root.trainer, self.root.cluster)
            if slow := slow_precision(self.root.trainer, torch.cpu.get_capabilities()):
                self.console.print(f"warning: {slow}")
        run = prepare_run(self.root, self.manager)
        if not run.root.trainer.dense_steps:
            self._look_at_checkpoints(run)
            return self._fit(run)
        dense = dense_stage(run)
        for stage in (dense, run):
            self._look_at_checkpoints(stage)
        with _session(run.root):
            first = _result(dense) if dense.model_dir.is_dir() else self._fit(dense)
            return replace(self._fit(second_stage(run, dense)), dense=first)

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end, from any thread."""
        self._stopping = True
        if self._current is not None:
            request_stop(self._current.directory)

    def stopped_result(self) -> TrainingResult:
        """Return the result so far of a run that was stopped."""
        assert self._current is not None  # only a run that trains can be stopped
        return replace(_result(self._current), stopped=True)

    def _look_at_checkpoints(self, run: Run) -> None:
        done, damaged = find_intact(run.directory)
        for line in damaged:
            self.console.print(line)
        if done > run.root.trainer.steps:
            raise ConfigError(
                f"trainer.steps={run.root.trainer.steps}: run {run.name} has done {done} steps; "
                f"set trainer.steps to at least {done}"
            )
        if done:
            self.console.print(f"run {run.name} goes on after step {done}")

    def _fit(self, run: Run) -> TrainingResult:
        self.console.print(_headline(run))
        write_environment(run.directory)
        try:
            with full_disk_ends(run.directory):
                while not self._fits(run):
                    pass
        except FINAL as error:
            record_end(run.directory, error)
            raise
        finally:
            draw_after_run(run.directory)
        return _result(run)

    def _fits(self, run: Run) -> bool:
        """Train to the end; if memory is full, split micro-batches and return False."""
        try:
            self._train(run)
        except MemoryFullError as error:
            self.console.print(halve(run.directory, error))
            return False
        return True

    def _train(self, run: Run) -> None:
        tracking, directory = run.root.tracking, run.directory
        with (
            track(tracking, directory, asdict(run.root)) as curves,
            show_progress(self.console, run.root.trainer.steps) as progress,
            calling(self.callbacks, directory) as callbacks,
            metrics.follow(directory, [progress, curves, callbacks]),
            _session(run.root),
        ):
            have = ray.cluster_resources()  # type: ignore[no-untyped-call]
            if waiting := check_cluster(run.root.trainer, run.root.cluster, have):
                self.console.print(waiting)
            with signals_save(directory, self.console):
                self._current = run
                if self._stopping:
                    request_stop(directory)
                stopped_at = in_a_thread(partial(_until_done, run))
        if stopped_at is not None:
            raise StoppedError(
                f"stopped after step {stopped_at} and saved; trainer.run_name={run.name} goes on "
                "from it"
            )


def _headline(run: Run) -> str:
    root = run.root
    return (
        f"run {run.name} in {run.directory}\n{root.model.name} under {root.policy.name}, "
        f"{root.trainer.method} fine-tuning for {root.trainer.steps} steps on "
        f"{root.trainer.num_workers} workers; starting them"
    )


def _session(root: TrainRoot) -> AbstractContextManager[None]:
    """Return a Ray session for this run, or none where the caller has opened one."""
    if ray.is_initialized():
        return nullcontext()
    trainer = root.trainer
    cpus = (trainer.min_workers or trainer.num_workers) * trainer.cpus_per_worker
    return ray_session(root.cluster, min_cpus=cpus, env=RAY_ENV)


def _until_done(run: Run) -> int | None:
    """Train, and return the steps done if the driver has asked for the end."""
    try:
        result = _trainer(run).fit()
    except TrainingFailedError as error:
        raise explain(error, run.directory) from None
    return cast("int | None", result.return_value)  # type: ignore[attr-defined]  # of V2


def _work(config: dict[str, Any]) -> int | None:
    from train.worker import run_worker  # in the worker alone: DeepSpeed looks for its device

    return run_worker(config)


def _trainer(run: Run) -> TorchTrainer:
    trainer = run.root.trainer
    resources = {"CPU": trainer.cpus_per_worker, **({"GPU": 1} if trainer.use_gpu else {})}
    return TorchTrainer(
        _work,  # type: ignore[arg-type]  # what rank 0 returns comes with the result
        train_loop_config={
            "root": run.root,
            "run_dir": str(run.directory),
            "policy_model": run.policy_model,
        },
        torch_config=TorchConfig(backend="nccl" if trainer.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_workers(trainer),  # type: ignore[arg-type]
            use_gpu=trainer.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's types are still those of V1
            name=run.name,
            storage_path=str(run.directory.parent),
            failure_config=FailureConfig(max_failures=trainer.max_failures),
            callbacks=[RecordFailures(run.directory)],  # type: ignore[list-item]
            worker_runtime_env={
                "env_vars": {"DS_ACCELERATOR": "cuda" if trainer.use_gpu else "cpu"}
            },
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _workers(trainer: TrainerConfig) -> int | tuple[int, int]:
    """Return the number of workers, for an elastic run the fewest and the most."""
    if trainer.min_workers is None:
        return trainer.num_workers
    return trainer.min_workers, trainer.num_workers


def _result(run: Run) -> TrainingResult:
    steps = run.root.trainer.steps  # a run that diverged has records beyond its good checkpoint
    records = [r for r in metrics.read(run.directory) if r.get("step", 0) <= steps]
    losses, tokens = metrics.series(records, "loss"), metrics.series(records, "tokens")
    held_out = list(metrics.series(records, "eval_loss").values())
    return TrainingResult(
        run_name=run.name,
        run_dir=run.directory,
        model_dir=run.model_dir,
        loss_before=held_out[0],
        loss_after=held_out[-1],
        steps=max(losses, default=0),
        tokens=int(tokens[max(losses)]) if losses else 0,
        losses=list(losses.values()),
        metrics={name: value for record in records for name, value in record.items()},
    )
