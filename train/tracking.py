"""wandb, TensorBoard and MLflow, fed from the run's records in the driver: keys never leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamahome.config import TrackingConfig
from train import metrics
from train.mlflow_log import mlflow_numbers

Numbers = Callable[[int, Mapping[str, float]], None]
SAMPLE = ("step", "prompt", "answer")


@dataclass(frozen=True)
class Log:
    """A place that a run's curves go to.

    Attributes:
        numbers: takes a step and its values by name.
        samples: takes a step and all answers of the run up to it; None where there are no texts.
    """

    numbers: Numbers
    samples: Callable[[int, Sequence[metrics.Record]], None] | None = None


@contextmanager
def track(
    tracking: TrackingConfig, run_dir: Path, settings: Mapping[str, Any]
) -> Iterator[metrics.Observer]:
    """Yield an observer that logs every number of a step, and samples, where `tracking` says.

    Args:
        settings: the run's config, shown next to the curves.

    Raises:
        ConfigError: for an MLflow server that does not answer.
    """
    logs: list[Log] = []
    observe = _once_each(logs, run_dir)
    for record in metrics.read(run_dir):  # those of a resumed run are logged already
        observe(record)
    with ExitStack() as stack:
        if tracking.mlflow is not None:
            place, project = tracking.mlflow, tracking.project
            numbers = stack.enter_context(mlflow_numbers(place, project, run_dir, settings))
            logs.append(Log(numbers))
        if tracking.wandb != "disabled":
            logs.append(stack.enter_context(_wandb(tracking, run_dir, settings)))
        if tracking.tensorboard:
            logs.append(stack.enter_context(_tensorboard(run_dir)))
        yield observe


def _once_each(logs: list[Log], run_dir: Path) -> metrics.Observer:
    """Leave out steps that a restarted run repeats: they are the same, and wandb wants order."""
    last: dict[str, int] = {}

    def observe(record: metrics.Record) -> None:
        step = record.get("step", -1)
        values = {n: v for n, v in _numbers(record).items() if step > last.get(n, -1)}
        last.update((name, step) for name in values)
        if values:
            for log in logs:
                log.numbers(step, values)
        if "eval_loss" in values and logs:
            _log_samples(logs, step, run_dir)

    return observe


def _numbers(record: metrics.Record) -> dict[str, float]:
    """Return a step's numbers by name, those of worker 0 as `name/0`."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            numbers |= {f"{name}/{rank}": own for rank, own in enumerate(value)}
        elif isinstance(value, int | float) and name != "step":
            numbers[name] = value
    return numbers


def _log_samples(logs: list[Log], step: int, run_dir: Path) -> None:
    """Log the answers of an evaluation; its workers write them before its loss."""
    samples = [sample for sample in metrics.samples(run_dir) if sample["step"] <= step]
    for log in logs:
        if samples and log.samples is not None:
            log.samples(step, samples)


@contextmanager
def _wandb(tracking: TrackingConfig, run_dir: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    import wandb

    run = wandb.init(
        mode=tracking.wandb,  # type: ignore[arg-type]  # checked by TrackingConfig
        project=tracking.project,
        entity=tracking.entity,
        dir=run_dir,
        id=run_dir.name,
        name=run_dir.name,
        resume="allow",
        config=dict(settings),
        # A process may train several runs side by side.
        settings=wandb.Settings(silent=True, console="off", reinit="create_new"),
    )

    def log_samples(step: int, samples: Sequence[metrics.Record]) -> None:
        rows = [[sample[column] for column in SAMPLE] for sample in samples]
        run.log({"samples": wandb.Table(columns=list(SAMPLE), data=rows)}, step=step)

    with run:
        yield Log(lambda step, values: run.log(dict(values), step=step), log_samples)


@contextmanager
def _tensorboard(run_dir: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def log_samples(step: int, samples: Sequence[metrics.Record]) -> None:
        own = [sample for sample in samples if sample["step"] == step]
        for number, sample in enumerate(own):
            text = f"**{sample['prompt']}**\n\n{sample['answer']}"
            writer.add_text(f"samples/{number}", text, step)

    with SummaryWriter(log_dir=str(run_dir / "tensorboard")) as writer:
        yield Log(log, log_samples)
