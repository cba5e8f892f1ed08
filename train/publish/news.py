"""Progress of an export on the screen: a line for each stage, a bar in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import track

from train.progress import plain_console

T = TypeVar("T")


def say(message: str) -> None:
    """Print one line on stderr."""
    plain_console(stderr=True).print(message)


def bar(items: Sequence[T], description: str) -> Iterable[T]:
    """Yield items next to a bar, in a terminal; elsewhere print `description` alone."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        console.print(description)
        return items
    return track(items, description, console=console)
