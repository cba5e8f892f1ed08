"""Results of a sweep in words: a line for each run, and the best one with the way to serve it."""

from __future__ import annotations

from statistics import median

from train import metrics
from train.runs.folder import SavedRun
from train.sweeps.jobs import Job, State, Sweep

HEADER = ["run", "overrides", "steps", "held-out loss", "tokens/s", "state"]
HIGHER_IS_BETTER = ("accuracy", "margin")
NONE = "-"


def sweep_table(sweep: Sweep) -> str:
    """Lay out one line for each run, with the overrides in which they differ."""
    rows = [HEADER, *(_row(sweep, job) for job in sweep.jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def final_value(run: SavedRun, metric: str) -> float | None:
    """Return a run's last value of a metric; None before the first."""
    values = metrics.series(run.records, metric)
    return list(values.values())[-1] if values else None


def best_run(sweep: Sweep, metric: str) -> tuple[Job, float] | None:
    """Return the finished job with the best last value of a metric; None if none has finished."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    values = [
        (job, value)
        for job in sweep.jobs
        if job.state == State.FINISHED
        and (run := sweep.saved(job)) is not None
        and (value := final_value(run, metric)) is not None
    ]
    return min(values, key=lambda pair: sign * pair[1], default=None)


def best_lines(sweep: Sweep, metric: str, *, by_name: bool) -> str:
    """Name the best run of a sweep, its model and the command that serves it.

    Args:
        by_name: whether the endpoint finds the model by the run's name.
    """
    best = best_run(sweep, metric)
    if best is None:
        return "no run has finished, so there is no model to serve"
    job, value = best
    model = sweep.run_dir(job) / "model"
    changes = " ".join(sweep.differing(job))
    return (
        f"best {metric} {value:.4f}: {job.name}{f' ({changes})' if changes else ''}\n"
        f"model in {model}; serve it with\n"
        f"  python -m serve model.name={job.name if by_name else model}"
    )


def _row(sweep: Sweep, job: Job) -> list[str]:
    run = sweep.saved(job)
    changes = " ".join(sweep.differing(job)) or NONE
    if run is None or job.root is None or not run.records:
        return [job.name or NONE, changes, NONE, NONE, NONE, job.outcome]
    steps = f"{run.steps}/{job.root.trainer.steps}"
    return [run.name, changes, steps, _held_out(run), _speed(run), job.outcome]


def _held_out(run: SavedRun) -> str:
    losses = list(run.held_out.values())
    return f"{losses[0]:.4f} -> {losses[-1]:.4f}" if losses else NONE


def _speed(run: SavedRun) -> str:
    speeds = metrics.series(run.records, "tokens_per_second").values()
    return f"{median(speeds):,.0f}" if speeds else NONE
