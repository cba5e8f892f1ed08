"""Progress on the screen: a bar in a terminal, elsewhere a line every tenth of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from train.metrics import Observer, Record


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: no markup, and no line breaks inside paths."""
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def show_progress(console: Console, steps: int) -> Iterator[Observer]:
    """Yield an observer that shows each step's loss, speed, memory and time left on `console`."""
    if not console.is_terminal:
        yield _lines(console, steps)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        console=console,
    ) as progress:
        yield _bar(progress, steps)


def _bar(progress: Progress, steps: int) -> Observer:
    task = progress.add_task("starting workers", total=steps, news="")

    def observe(record: Record) -> None:
        if "loss" in record:
            progress.update(
                task, description="training", completed=record["step"], news=_news(record)
            )
        elif message := _message(record):
            progress.console.print(message, markup=False)

    return observe


def _lines(console: Console, steps: int) -> Observer:
    shown = -1

    def observe(record: Record) -> None:
        nonlocal shown
        if "loss" in record:
            tenth = 10 * record["step"] // steps
            if tenth == shown:
                return
            shown = tenth
            console.print(f"step {record['step']}/{steps}  {_news(record)}")
        elif message := _message(record):
            console.print(message, markup=False)

    return observe


def _news(record: Record) -> str:
    """Return a step's figures; those that it does not have are left out."""
    return "  ".join(spell(record[name]) for name, spell in NEWS.items() if name in record)


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} left"


NEWS: dict[str, Callable[[Any], str]] = {
    "loss": lambda loss: f"loss {loss:.3f}",
    "grad_norm": lambda norm: f"gradient {norm:.2f}",
    "tokens_per_second": lambda speed: f"{speed:,.0f} tokens/s",
    "mfu": lambda share: f"MFU {share:.1%}",
    "memory_gb": lambda each: f"{max(each):.1f} GB",
    "seconds_left": _left,
}


def _message(record: Record) -> str | None:
    """Return one line for a record that is no training step; None for an unknown one."""
    if "eval_loss" in record:
        return f"step {record['step']}: held-out loss {record['eval_loss']:.4f}"
    if "failure" in record:
        return f"a worker failed: {record['failure']}"
    if "warning" in record:
        return f"warning: {record['warning']}"
    return None
