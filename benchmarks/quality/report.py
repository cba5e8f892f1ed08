"""docs/quality.md: the page of a result of `python -m benchmarks.quality --long`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.draw import plotted
from benchmarks.quality.figures import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT = Path(__file__).parents[2] / "docs" / "quality.md"
Result = dict[str, Any]
TARGETS: dict[str, tuple[str, str, Callable[[float], bool]]] = {
    "gap_closed_10": ("share of the gap closed, 10 %", "at least 0.667", lambda v: v >= 2 / 3),
    "flat_ppl_over_dense_20": (
        "perplexity over dense, h2o 20 %",
        "at most 1.01",
        lambda v: v <= 1.01,
    ),
    "dense_harm": ("dense serving loses", "at most 0.01", lambda v: v <= 0.01),
    "needle_over_dense_20": ("needles over dense, 20 %", "at least 0.95", lambda v: v >= 0.95),
    "needle_over_dense_10": ("needles over dense, 10 %", "at least 0.8", lambda v: v >= 0.8),
    "ppl_over_dense_10": ("perplexity over dense, 10 %", "at most 1.03", lambda v: v <= 1.03),
    "ppl_over_dense_20": ("perplexity over dense, 20 %", "at most 1.03", lambda v: v <= 1.03),
}
MODELS = {
    "untrained": "as it came",
    "dense": "trained dense",
    "hybrid": "trained under the pattern",
}
HEAD = """\
# Quality

What an eviction policy costs a model, and what training under it is worth. Measured on {date} with
`{command}` ({machine}; {seeds} seeds of {steps} steps); this page is written by that command.

SmolLM2-135M-Instruct is fine-tuned twice with the same data, steps and seeds: dense, and under the pattern that
`llamahome calibrate --budget 0.1` proposes ({full} KV heads keep everything, the others {rest} entries each).
It learns samples of *Emma* with facts inserted (`data=retrieval`); a quarter of the hybrid arm's steps are dense.
Both are then served dense and evicting, on windows of {context} tokens of *Persuasion*, through the cache that
serves. "10 %" and "20 %" are the KV entries of {context} tokens, averaged over heads; `pattern` has the same total
as `h2o`. "Dense" is always the model trained dense, served dense. ± is the 95 % interval over seeds.
"""


def write_report(result: Result, file: Path) -> Path:
    """Write the page to `file`, and its plot to `images/quality.png` in the same folder."""
    picture = file.parent / "images" / "quality.png"
    _plot(result, picture)
    parts = [_head(result), _claims(result), f"![quality against budget](images/{picture.name})\n"]
    parts += [_table(result, task) for task in ("perplexity", "needle")]
    file.write_text("\n".join(parts))
    return file


def _head(result: Result) -> str:
    pattern = result["patterns"]["0.1"]
    return HEAD.format(
        **{key: result[key] for key in ("date", "command", "machine")},
        seeds=len(result["seeds"]),
        **{key: result["form"][key] for key in ("steps", "context")},
        full=len(pattern["pattern"]),
        rest=pattern["budget"],
    )


def _claims(result: Result) -> str:
    lines = ["## Targets\n", "| figure | measured | target | |", "|---|---|---|---|"]
    for name, (what, target, holds) in TARGETS.items():
        mean, half = interval([seed[name] for seed in result["seeds"]])
        spread = "" if half is None else f" ± {half:.3f}"
        verdict = "met" if holds(mean) else "**missed**"
        lines.append(f"| {what} | {mean:.3f}{spread} | {target} | {verdict} |")
    return "\n".join([*lines, ""])


def _table(result: Result, task: str) -> str:
    rows = [row for row in result["served"] if row["task"] == task]
    ways = list(dict.fromkeys((row["policy"], row["budget"]) for row in rows))
    title = "## Needles found" if task == "needle" else "## Perplexity and KL to dense serving"
    lines = [
        f"{title}\n",
        "| served under | entries | KV bytes | " + " | ".join(MODELS.values()) + " |",
        "|---" * (3 + len(MODELS)) + "|",
    ]
    for policy, budget in sorted(ways, key=lambda way: (way[0], way[1] or math.inf)):
        own = [r for r in rows if (r["policy"], r["budget"]) == (policy, budget)]
        cells = [_cell([r for r in own if r["model"] == model]) for model in MODELS]
        share = f"{own[0]['kv_share']:.0%}"
        lines.append(f"| {policy} | {budget or 'all'} | {share} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(rows: list[Result]) -> str:
    if not rows:
        return ""
    (row,) = rows
    if row["task"] == "needle":
        mean, half = interval(row["accuracy"])
        return f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")
    mean, half = interval([math.exp(nll) for nll in row["nll"]])
    spread = "" if half is None else f" ± {half:.2f}"
    return f"{mean:.2f}{spread} ({statistics.fmean(row['kl']):.3f})"


def _plot(result: Result, file: Path) -> None:
    rows = [row for row in result["served"] if row["task"] == "perplexity"]
    with plotted(file, len(MODELS), (13, 3.8), sharey=True, sharex=True) as axes:
        for axis, (model, title) in zip(axes, MODELS.items(), strict=True):
            _panel([row for row in rows if row["model"] == model], title, axis)
        axes[0].set_ylabel("perplexity")


def _panel(rows: list[Result], title: str, axis: Axes) -> None:
    """Draw the perplexity of one model over what each policy holds."""
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] != "full"):
        line = sorted((r for r in rows if r["policy"] == policy), key=lambda r: r["kv_share"])
        shares, levels = [row["kv_share"] for row in line], [_perplexity(row) for row in line]
        axis.plot(shares, levels, marker="o", label=policy)
    (dense,) = (row for row in rows if row["policy"] == "full")
    axis.axhline(_perplexity(dense), color="grey", linestyle="--", label="dense")
    axis.set(title=title, xlabel="KV entries held, as a share of dense", xscale="log")
    axis.legend(fontsize="small")


def _perplexity(row: Result) -> float:
    return statistics.fmean(math.exp(nll) for nll in row["nll"])
