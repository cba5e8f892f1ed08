"""The table at the end of a sweep: what each run changed, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = ["run", "overrides", "held-out loss", "model"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of a sweep.

    Attributes:
        overrides: its arguments, also those that all runs share.
        name, losses, model_dir: run name, held-out loss before and after, exported folder; None for
            a run that failed.
    """

    overrides: Sequence[str]
    name: str | None = None
    losses: tuple[float, float] | None = None
    model_dir: Path | None = None


def sweep_table(outcomes: Sequence[Outcome]) -> str:
    """Lay out one line for each run, with the overrides in which they differ."""
    shared = set.intersection(*(set(outcome.overrides) for outcome in outcomes))
    rows = [HEADER]
    for outcome in outcomes:
        differing = " ".join(each for each in outcome.overrides if each not in shared)
        losses = "failed"
        if outcome.losses is not None:
            losses = "{:.4f} -> {:.4f}".format(*outcome.losses)
        rows.append([outcome.name or "-", differing or "-", losses, str(outcome.model_dir or "-")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
