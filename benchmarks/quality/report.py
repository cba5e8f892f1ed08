"""docs/quality.md, made anew from a result of `python -m benchmarks.quality --long`.

python -m benchmarks.quality.report benchmarks/results/quality-long-2026-11-24.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.quality.__main__ import REPORT, interval

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
`llamahome calibrate --budget 0.1` proposes ({full} KV heads keep everything, {rest} entries for each other one).
It learns rows of *Emma* with facts strewn in (`data=retrieval`); a quarter of the hybrid arm's steps are dense.
Both are then served dense and evicting, on windows of {context} tokens of *Persuasion*, through the cache that
serves. "10 %" and "20 %" are KV entries, an average over heads, of {context}; `pattern` has the same total as
`h2o`. "Dense" is always the model trained dense, served dense. ± is the 95 % interval over seeds.
"""


def write_report(result: Result, file: Path) -> Path:
    """Write the page and, beside it, its pictures."""
    picture = file.parent / "images" / "quality.png"
    picture.parent.mkdir(exist_ok=True)
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3, figsize=(13, 3.8), layout="constrained", sharey=True, sharex=True
    )
    rows = [row for row in result["served"] if row["task"] == "perplexity"]
    for axis, (model, title) in zip(axes, MODELS.items(), strict=True):
        own = [row for row in rows if row["model"] == model]
        for policy in dict.fromkeys(row["policy"] for row in own if row["policy"] != "full"):
            line = sorted((r for r in own if r["policy"] == policy), key=lambda r: r["kv_share"])
            axis.plot(
                [row["kv_share"] for row in line],
                [statistics.fmean(math.exp(nll) for nll in row["nll"]) for row in line],
                marker="o",
                label=policy,
            )
        (dense,) = (row for row in own if row["policy"] == "full")
        level = statistics.fmean(math.exp(nll) for nll in dense["nll"])
        axis.axhline(level, color="grey", linestyle="--", label="dense")
        axis.set(title=title, xlabel="KV entries held, as a share of dense", xscale="log")
        axis.legend(fontsize="small")
    axes[0].set_ylabel("perplexity")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    result = json.loads(parser.parse_args().result.read_text())
    print(f"report in {write_report(result, REPORT)}")


if __name__ == "__main__":
    main()
