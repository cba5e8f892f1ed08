"""Tables and plots, the same for every benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return an empty table: columns of names on the left, of numbers on the right."""
    made = Table(title=title)
    for column in names:
        made.add_column(column)
    for column in numbers:
        made.add_column(column, justify="right")
    return made


@contextmanager
def plotted(
    file: Path, panels: int, size: tuple[float, float], **options: Any
) -> Iterator[Sequence[Axes]]:
    """Yield panels side by side, and write them to `file` (PNG) afterwards.

    Args:
        size: width and height in inches.
        options: for `pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained", **options)
    try:
        yield axes
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    finally:
        pyplot.close(figure)
