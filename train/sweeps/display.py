"""Progress of a sweep: in a terminal a bar for each run that trains, elsewhere lines with names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from train.metrics import Observer, Record
from train.sweeps.jobs import Job, Sweep


class Display:
    """Lines and bars of a sweep's runs on one console.

    Args:
        console: shared by all runs.
        progress: shows the bars; None where the console is no terminal.
    """

    def __init__(self, sweep: Sweep, console: Console, progress: Progress | None) -> None:
        self.sweep, self.console, self._progress = sweep, console, progress
        self._bars: dict[str | None, TaskID] = {}

    def say(self, job: Job, line: str) -> None:
        """Print a line under a run's name."""
        self.console.print(f"{job.name}  {line}")

    def started(self, job: Job, steps: int) -> None:
        """Show that a run begins.

        Args:
            steps: of all its stages.
        """
        if self._progress is None:
            self.say(job, f"starts: {' '.join(self.sweep.differing(job))}")
            return
        name = f"{job.name}  {' '.join(self.sweep.differing(job))}"
        self._bars[job.name] = self._progress.add_task(name, total=steps, news="starting workers")

    def ended(self, job: Job) -> None:
        """Take away a run's bar, and say what became of it."""
        if self._progress is not None and job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))
        self.say(job, job.outcome)

    def observer(self, job: Job, done: int) -> Observer:
        """Return an observer that moves a run's bar.

        Args:
            done: steps of the stages before.
        """

        def observe(record: Record) -> None:
            progress, bar = self._progress, self._bars.get(job.name)
            if progress is None or bar is None:
                return
            if "loss" in record:
                news = f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s"
                progress.update(bar, completed=done + record["step"], news=news)
            elif "eval_loss" in record:
                progress.update(bar, news=f"held-out loss {record['eval_loss']:.4f}")

        return observe

    def console_for(self, job: Job) -> Console:
        """Return a console whose lines appear under the run's name.

        In a terminal, lines about steps are left out: the bar shows them.
        """

        def show(line: str) -> None:
            if self._progress is None or not line.startswith("step "):
                self.say(job, line)

        return Console(
            file=cast(IO[str], _Lines(show)), highlight=False, markup=False, soft_wrap=True
        )


@contextmanager
def show_sweep(sweep: Sweep, console: Console) -> Iterator[Display]:
    """Yield the display of a sweep."""
    if not console.is_terminal:
        yield Display(sweep, console, None)
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield Display(sweep, console, progress)


class _Lines(io.TextIOBase):
    """Text stream that hands on whole lines."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._begun = show, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(None, lines):
            self._show(line)
        return len(text)
