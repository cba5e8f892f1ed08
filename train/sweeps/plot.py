"""Picture of a sweep (PNG): curves of its runs, and the metric over each swept key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from train import metrics
from train.runs.folder import RunsError, SavedRun
from train.runs.plots import COLOURS, DASHES, NoMatplotlibError
from train.sweeps.jobs import Job, State, Sweep
from train.sweeps.table import final_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_FILE = "sweep.png"
LEGEND_RUNS = 12  # more names than this hide the curves
WIDE = 20  # a range whose ends differ by this factor is drawn on a logarithmic axis


def draw_sweep(sweep: Sweep, metric: str) -> Path:
    """Plot a metric of all runs by step, and its last value over each swept key.

    Returns:
        The file, in the sweep's folder.

    Raises:
        RunsError: without matplotlib, or without any value of the metric.
    """
    runs = [(job, run) for job in sweep.jobs if (run := sweep.saved(job)) is not None]
    runs = [(job, run) for job, run in runs if final_value(run, metric) is not None]
    if not runs:
        raise RunsError(f"no run of {sweep.name} has a value of {metric} yet")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlibError(
            "no plot without matplotlib, which is in the extra `eval`; install it: "
            "uv pip install 'matplotlib>=3.10'"
        ) from error
    keys = swept_keys(sweep)
    figure = Figure(figsize=(6 + 4 * len(keys), 4.2), layout="constrained")
    curves, *over = figure.subplots(1, 1 + len(keys), squeeze=False)[0]
    _draw_curves(curves, runs, metric)
    for axes, key in zip(over, keys, strict=True):
        _draw_over(axes, sweep, runs, key, metric)
    file = sweep.directory / PLOT_FILE
    figure.savefig(file, dpi=120)
    return file


def swept_keys(sweep: Sweep) -> list[str]:
    """Return the keys in whose values the jobs differ, in the order of the command line."""
    pairs = [_value_of(each) for job in sweep.jobs for each in sweep.differing(job)]
    return list(dict.fromkeys(key for key, _ in pairs))


def _value_of(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _draw_curves(axes: Axes, runs: Sequence[tuple[Job, SavedRun]], metric: str) -> None:
    for number, (_, run) in enumerate(runs):
        curve = metrics.series(run.records, metric)
        axes.plot(
            list(curve),
            list(curve.values()),
            color=f"C{number % COLOURS}",
            linestyle=DASHES[number // COLOURS % len(DASHES)],
            marker="o" if len(curve) < 50 else None,
            markersize=3,
            label=run.name.replace("$", r"\$"),
        )
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if len(runs) <= LEGEND_RUNS:
        axes.legend(fontsize="small")


def _draw_over(
    axes: Axes, sweep: Sweep, runs: Sequence[tuple[Job, SavedRun]], key: str, metric: str
) -> None:
    """Plot the last values over one key: crosses for runs that did not reach their end."""
    values = [dict(map(_value_of, job.overrides)).get(key, "") for job, _ in runs]
    numbers = _numbers(values)
    at: Sequence[float | str] = values if numbers is None else numbers
    for number, (job, run) in enumerate(runs):
        finished = job.state == State.FINISHED
        axes.plot(
            [at[number]],
            [cast(float, final_value(run, metric))],
            color=f"C{number % COLOURS}",
            marker="o" if finished else "x",
            linestyle="",
        )
    if numbers is not None and min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE:
        axes.set_xscale("log")
    axes.set_xlabel(key.replace("$", r"\$"))
    axes.set_ylabel(f"last {metric}")
    axes.grid(alpha=0.3)


def _numbers(values: Sequence[str]) -> list[float] | None:
    """Return values as numbers; None when one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None
