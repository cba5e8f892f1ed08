"""Curves of runs as pictures (PNG)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from train.runs.folder import RunsError, SavedRun, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

LOSS_FILE = "loss.png"
COLOURS = 10  # in matplotlib's cycle; further runs get other dashes
DASHES = ("-", "--", ":", "-.")


class NoMatplotlibError(RunsError):
    """A picture without matplotlib, which is in an extra."""


def draw_losses(run: SavedRun) -> Path:
    """Plot training and held-out loss by step into the run's folder, and return the file.

    Raises:
        RunsError: without matplotlib, without any loss, or for a folder that cannot be written.
    """
    if not run.losses and not run.held_out:
        raise RunsError(f"run {run.name} has no loss yet")
    file = run.directory / LOSS_FILE
    with _plotted(file, run.name) as axes:
        axes.plot(*_points(run.losses), color="C0", alpha=0.5, linewidth=1, label="training")
        axes.plot(*_points(run.held_out), color="C3", marker="o", markersize=4, label="held out")
        axes.set_ylabel("loss")
    return file


def draw_comparison(runs: Sequence[SavedRun], file: Path) -> Path:
    """Plot the held-out losses of several runs by step into one picture, and return the file.

    Raises:
        RunsError: without matplotlib, without any loss, or for a file that cannot be written.
    """
    if not any(run.held_out for run in runs):
        raise RunsError("none of these runs has a held-out loss yet")
    with _plotted(file, "") as axes:
        for number, run in enumerate(runs):
            axes.plot(
                *_points(run.held_out),
                color=f"C{number % COLOURS}",
                linestyle=DASHES[number // COLOURS % len(DASHES)],
                marker="o",
                markersize=4,
                label=_plain(run.name),
            )
        axes.set_ylabel("held-out loss")
    return file


def draw_after_run(run_dir: Path) -> None:
    """Draw the losses of a run that has just ended; a failure to draw is only logged."""
    try:
        draw_losses(read_run(run_dir))
    except NoMatplotlibError:
        logger.info("no %s: matplotlib is not installed", LOSS_FILE)
    except Exception as error:  # noqa: BLE001 - a picture is worth no run
        logger.warning("%s of run %s is not drawn: %s", LOSS_FILE, run_dir.name, error)


@contextmanager
def _plotted(file: Path, title: str) -> Iterator[Axes]:
    """Yield axes by step, and write them to `file` afterwards.

    A Figure without pyplot: pyplot has one state for the process, and a run may be in a thread of a
    notebook that draws too.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise NoMatplotlibError(
            "no plot without matplotlib, which is in the extra `eval`; install it: "
            "uv pip install 'matplotlib>=3.10'"
        ) from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_plain(title), fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(*axes.get_legend_handles_labels())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an end of the name that is no picture's
        raise RunsError(f"{file} cannot be written: {error}") from error


def _points(series: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(series), list(series.values())


def _plain(name: str) -> str:
    """Return a name whose dollar signs are not taken for formulas."""
    return name.replace("$", r"\$")
