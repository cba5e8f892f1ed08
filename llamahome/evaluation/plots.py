"""Pictures of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamahome.evaluation.evaluation import Result

LABELS = {"perplexity": "perplexity over dense", "needle": "needle", "recall": "recall"}


def plot_results(results: Sequence[Result], stem: Path) -> list[Path]:
    """Plot quality against budget for every task, and answers by depth; return the files.

    Args:
        results: figures of one model, dense among them.
        stem: path of the files, without the end that names what they show.
    """
    files = [_quality(results, stem)]
    if any(result.task != "perplexity" for result in results):
        files.append(_depths(results, stem))
    return files


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _axes(results: Sequence[Result], height: float) -> tuple[Any, dict[str, Any]]:
    """Return a figure with axes for each task, side by side, and the axes by task."""
    tasks = list(dict.fromkeys(result.task for result in results))
    figure, axes = _pyplot().subplots(
        1, len(tasks), figsize=(4.5 * len(tasks), height), layout="constrained", squeeze=False
    )
    return figure, dict(zip(tasks, axes[0], strict=True))


def _quality(results: Sequence[Result], stem: Path) -> Path:
    figure, axes = _axes(results, 3.6)
    for task, axis in axes.items():
        own = [result for result in results if result.task == task]
        dense = next(result for result in own if result.policy["budget"] is None)
        for name in dict.fromkeys(r.policy["name"] for r in own if r is not dense):
            line = sorted((r for r in own if r.policy["name"] == name), key=_share)
            heights = [_height(r, dense) for r in line]
            axis.plot([_share(r) for r in line], heights, marker="o", label=name)
        axis.axhline(_height(dense, dense), color="grey", linestyle="--", label="dense")
        axis.set(
            xlabel="keys and values held, as a share of dense", ylabel=LABELS[task], xscale="log"
        )
        if task != "perplexity":
            axis.set_ylim(-0.05, 1.05)
    figure.axes[0].legend()
    return _save(figure, stem.with_name(f"{stem.name}-quality.png"))


def _share(result: Result) -> float:
    kv = result.values["kv"]
    return float(kv["final"] / kv["dense"])


def _height(result: Result, dense: Result) -> float:
    if result.task == "perplexity":
        return float(result.values["perplexity"] / dense.values["perplexity"])
    return float(result.values["accuracy"])


def _depths(results: Sequence[Result], stem: Path) -> Path:
    """Plot the share of right answers at each depth, one row for each policy and budget."""
    asked = [result for result in results if result.task != "perplexity"]
    figure, axes = _axes(asked, 4)
    for task, axis in axes.items():
        own = [result for result in asked if result.task == task]
        # Depths are keys of a JSON object, so they come back as strings.
        depths = [float(depth) for depth in own[0].values["by_depth"]]
        shares = [list(result.values["by_depth"].values()) for result in own]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set(title=task, xlabel="depth in the prompt")
        axis.set_xticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axis.set_yticks(range(len(own)), [_name(result) for result in own])
    figure.colorbar(image, ax=list(axes.values()), label="found")
    return _save(figure, stem.with_name(f"{stem.name}-depths.png"))


def _name(result: Result) -> str:
    budget = result.policy["budget"]
    return "dense" if budget is None else f"{result.policy['name']} {budget}"


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
