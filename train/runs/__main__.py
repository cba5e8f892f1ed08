"""`python -m train.runs`: list, show, compare and remove runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from llamahome.logs import configure_logging
from llamahome.models import ModelManager
from train.progress import plain_console
from train.runs.environment import read_environment
from train.runs.folder import (
    RunsError,
    SavedRun,
    check_removable,
    dependants,
    find_run,
    folder_size,
    read_run,
    remove_run,
    run_folders,
)
from train.runs.plots import draw_comparison, draw_losses
from train.runs.sweeps import folders_of, sweeps_of_runs, together
from train.runs.tables import answers, comparison, figures, last_records, pairs, run_list

LAST_RECORDS = 10
WIDTH = 200  # columns of a table in a file or a pipe
REFUSED = 2

app = typer.Typer(
    help="List, show, compare and remove training runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of runs [default: `runs` in the cache directory]."),
]


@app.command("list")
def list_runs(folder: Folder = None) -> None:
    """List runs, the last started first, those of a sweep together."""
    runs_dir = _runs_dir(folder)
    runs = []
    for directory in run_folders(runs_dir):
        try:
            runs.append(read_run(directory))
        except RunsError as error:
            _complain(f"left out: {error}")
    if runs:
        with _plain_errors():
            sweeps = sweeps_of_runs(runs_dir)
        _console().print(run_list(together(runs, sweeps), sweeps))
    else:
        plain_console().print(f"no runs in {runs_dir}")


@app.command()
def show(name: Name, folder: Folder = None) -> None:
    """Show a run's config, environment, figures, samples and last records; plot its losses."""
    with _plain_errors():
        run = read_run(find_run(_runs_dir(folder), name))
    console = _console()
    console.print(pairs("config, where it is not the default", run.changes))
    environment = read_environment(run.directory)
    console.print(pairs("environment", environment or {"": "not recorded"}))
    console.print(pairs("figures", figures(run)))
    if (samples := answers(run)) is not None:
        console.print(samples)
    plain_console().print(last_records(run.records[-LAST_RECORDS:]))
    _plot(lambda: draw_losses(run))


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Names of runs or sweeps.")
    ],
    output: Annotated[Path, typer.Option(help="Picture of the held-out losses.")] = Path(
        "compare.png"
    ),
    folder: Folder = None,
) -> None:
    """Compare runs: where their configs differ, their figures, their held-out losses."""
    with _plain_errors():
        runs = _several(names, _runs_dir(folder))
    _console().print(comparison(runs))
    _plot(lambda: draw_comparison(runs, output))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run or a sweep.")],
    folder: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run with its checkpoints, curves and model; or a sweep with all its runs."""
    with _plain_errors():
        runs_dir = _runs_dir(folder)
        directories = folders_of(runs_dir, name)
        if directories != [runs_dir / name]:
            directories.append(runs_dir / name)  # the sweep's own, last: until then it knows them
        for directory in directories:
            check_removable(directory)
        size = decimal(sum(map(folder_size, directories)))
        needing = {other for directory in directories for other in dependants(directory)}
        if needing := needing - {directory.name for directory in directories}:
            _complain(f"warning: its model is the base of {', '.join(sorted(needing))}")
        if not yes:
            what = f"with its {len(directories) - 1} runs" if directories[1:] else "with its model"
            typer.confirm(f"Delete {runs_dir / name} ({size}) {what}?", abort=True)
        for directory in directories:
            remove_run(directory)
    plain_console().print(f"{name} is removed; {size} freed")


def _runs_dir(folder: Path | None) -> Path:
    return ModelManager().runs_dir if folder is None else folder.expanduser()


def _several(names: list[str], runs_dir: Path) -> list[SavedRun]:
    different = list(dict.fromkeys(f for name in names for f in folders_of(runs_dir, name)))
    if len(different) < 2:
        raise RunsError("name at least two runs, or a sweep of two, to compare")
    return [read_run(folder) for folder in different]


def _plot(draw: Callable[[], Path]) -> None:
    """Draw and print the file's path; what keeps it from being drawn is no failure."""
    try:
        plain_console().print(f"plot in {draw()}")
    except RunsError as error:
        _complain(str(error))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _complain(message: str) -> None:
    plain_console(stderr=True).print(message)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show an error as one line."""
    try:
        yield
    except RunsError as error:
        _complain(f"error: {error}")
        raise typer.Exit(REFUSED) from error


if __name__ == "__main__":
    configure_logging("WARNING")
    app(prog_name="llamahome runs")
