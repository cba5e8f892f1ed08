"""wandb and TensorBoard, fed from the run's records in the driver: keys never leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llamahome.config import TrackingConfig
from train import metrics

Log = Callable[[int, Mapping[str, float]], None]


@contextmanager
def track(
    tracking: TrackingConfig, run_dir: Path, settings: Mapping[str, Any]
) -> Iterator[metrics.Observer]:
    """Yield an observer that logs every number of a step where `tracking` says.

    Args:
        settings: the run's config, shown next to the curves.
    """
    logs: list[Log] = []
    observe = _once_each(logs)
    for record in metrics.read(run_dir):  # those of a resumed run are logged already
        observe(record)
    with ExitStack() as stack:
        if tracking.wandb != "disabled":
            logs.append(stack.enter_context(_wandb(tracking, run_dir, settings)))
        if tracking.tensorboard:
            logs.append(stack.enter_context(_tensorboard(run_dir)))
        yield observe


def _once_each(logs: list[Log]) -> metrics.Observer:
    """Leave out steps that a restarted run repeats: they are the same, and wandb wants order."""
    last: dict[str, int] = {}

    def observe(record: metrics.Record) -> None:
        step = record.get("step", -1)
        values = {n: v for n, v in record.items() if n != "step" and step > last.get(n, -1)}
        last.update((name, step) for name in values)
        if values:
            for log in logs:
                log(step, values)

    return observe


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
    with run:
        yield lambda step, values: run.log(dict(values), step=step)


@contextmanager
def _tensorboard(run_dir: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    with SummaryWriter(log_dir=str(run_dir / "tensorboard")) as writer:
        yield log
