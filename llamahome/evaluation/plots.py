"""Pictures of an evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamahome.evaluation.intervals import paired_ratio
from llamahome.evaluation.results import Cell, Result

LABELS = {"perplexity": "perplexity over dense", "needle": "needles", "recall": "recall"}


def plot_results(results: Sequence[Result], stem: Path) -> list[Path]:
    """Plot quality against budget for every cell, and answers by depth and kind; return the files.

    Args:
        results: figures of one model, dense among them.
        stem: path of the files, without the end that names what they show.
    """
    files = [_quality(results, stem.with_name(f"{stem.name}-quality.png"))]
    for part in ("depth", "kind"):
        asked = [result for result in results if len(result.values.get(f"by_{part}", ())) > 1]
        if asked:
            files.append(_shares(asked, f"by_{part}", stem.with_name(f"{stem.name}-{part}s.png")))
    return files


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _panels(results: Sequence[Result], height: float) -> tuple[Any, list[tuple[Any, list[Result]]]]:
    """Return a figure, and for each cell its axes and results: contexts down, tasks across."""
    rows = list(dict.fromkeys(result.context for result in results))
    columns = list(dict.fromkeys((result.task, result.text) for result in results))
    size = (4.5 * len(columns), height * len(rows))
    figure, axes = _pyplot().subplots(
        len(rows), len(columns), figsize=size, layout="constrained", squeeze=False
    )
    panels = []
    for (row, context), (column, (task, text)) in itertools.product(
        enumerate(rows), enumerate(columns)
    ):
        own = [r for r in results if r.cell == Cell(task, text, context)]
        axis = axes[row][column]
        axis.set_title(f"{context} tokens of {Path(text).stem}", fontsize="medium")
        panels.append((axis, own))
    return figure, panels


def _quality(results: Sequence[Result], file: Path) -> Path:
    figure, panels = _panels(results, 3.6)
    for axis, own in panels:
        dense, *evicting = own
        for name in dict.fromkeys(result.policy["name"] for result in evicting):
            line = sorted((r for r in evicting if r.policy["name"] == name), key=_share)
            heights, errors = zip(*(_height(result, dense) for result in line), strict=True)
            below, above = zip(*errors, strict=True)
            shares = [_share(result) for result in line]
            axis.errorbar(shares, heights, yerr=(below, above), marker="o", capsize=3, label=name)
        axis.axhline(_height(dense, dense)[0], color="grey", linestyle="--", label="dense")
        axis.set(
            xlabel="keys and values held, as a share of dense",
            ylabel=LABELS[dense.task],
            xscale="log",
        )
        if dense.task != "perplexity":
            axis.set_ylim(-0.05, 1.05)
    figure.axes[0].legend()
    return _save(figure, file)


def _share(result: Result) -> float:
    kv = result.values["kv"]
    return float(kv["final"] / kv["dense"])


def _height(result: Result, dense: Result) -> tuple[float, tuple[float, float]]:
    """Return a figure, and how far its interval reaches below and above it."""
    values = result.values
    if result.task == "perplexity":
        over, interval = paired_ratio(values["blocks"], dense.values["blocks"], values["tokens"])
        low, high = interval or (over, over)
        return 1 + over, (over - low, high - over)
    share, (low, high) = values["accuracy"], values["interval"]
    return share, (share - low, high - share)


def _shares(results: Sequence[Result], part: str, file: Path) -> Path:
    """Plot the share of right answers in each part, one row for each policy and budget."""
    figure, panels = _panels(results, 4)
    for axis, own in panels:
        names = [_part_name(name) for name in own[0].values[part]]
        shares = [[right / asked for right, asked in r.values[part].values()] for r in own]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set(xlabel=f"{own[0].task} {part.replace('_', ' ')}")
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(own)), [_name(result) for result in own])
    figure.colorbar(image, ax=figure.axes, label="found")
    return _save(figure, file)


def _part_name(name: str) -> str:
    """Return a depth in percent, or a kind; depths come back from JSON as strings."""
    return name if name.isalpha() else f"{float(name):.0%}"


def _name(result: Result) -> str:
    return "dense" if result.entries is None else f"{result.policy['name']} {result.entries}"


def plot_kept(positions: Sequence[Sequence[int]], length: int, title: str, file: Path) -> None:
    """Plot the tokens that a KV head keeps: positions across, chunks down.

    Args:
        positions: per chunk, the positions that the head held at its end.
        length: tokens of the text.
    """
    figure, axis = _pyplot().subplots(figsize=(7, 4), layout="constrained")
    for chunk, held in enumerate(positions, start=1):
        axis.plot(held, [chunk] * len(held), ",", color="black")
    axis.set(title=title, xlabel="position", ylabel="chunk", xlim=(0, length))
    axis.set_ylim(len(positions) + math.ceil(len(positions) / 50), 0)
    _save(figure, file)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    _pyplot().close(figure)
    return file
