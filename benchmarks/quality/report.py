"""docs/quality.md: the page of a result of `python -m benchmarks.quality --long`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.draw import plotted
from benchmarks.quality.figures import Figure
from benchmarks.quality.form import FLOORS, LADDER, LEARNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT = Path(__file__).parents[2] / "docs" / "quality.md"
Result = dict[str, Any]
ARMS = {"untrained": "as it came", "dense": "trained dense", "policy": "trained under the policy"}
FIRST = 2048  # the context of the targets
Holds = Callable[[float], bool]


def _most(limit: float) -> tuple[str, Holds]:
    return f"at most {limit:g}", lambda value: value <= limit


def _least(limit: float) -> tuple[str, Holds]:
    return f"at least {limit:g}", lambda value: value >= limit


TARGETS = (
    ("perplexity", "untrained", LEARNED, 0.1, *_most(1.02)),
    ("perplexity", "untrained", LEARNED, 0.2, *_most(1.005)),
    ("needle", "untrained", LEARNED, 0.1, *_least(0.95)),
    ("needle", "untrained", LEARNED, 0.2, *_least(0.95)),
    ("perplexity", "policy", LEARNED, 0.05, *_most(1.05)),
    ("perplexity", "policy", LEARNED, 0.1, *_most(1.01)),
    ("perplexity", "policy", LEARNED, 0.2, *_most(1.002)),
    ("perplexity", "policy", "full", 1.0, *_most(1.005)),
)
HEAD = """\
# Quality

What a small KV cache costs a model, and what budgets, a learned score and training win back. Measured on {date} with
`{command}` ({processor}, {cores} cores; {amount}); this page is written by that command.

SmolLM2-135M-Instruct is fine-tuned without eviction for {dense_steps} steps of 2,048 tokens, samples of *Emma* with facts
inserted (`data=retrieval`). From there it goes on in two arms, for {steps} steps on the same rows: *trained dense*, and
*trained under the policy*, the one that it carries, at 10 % of the entries, with the dense-tuned model as its teacher and
the score trained along. Both, and the model as it came, are then served on held-out windows of *Persuasion* ({windows} of
2,048 tokens), through the cache that serves, with fp32 weights. Perplexity is a multiple of *dense*: the model that was
trained dense, served dense (of the model as it came: itself). Every budget is an average over KV heads. Intervals are
95 %, {interval}.

"""
TAIL = """\
## What did not help

- Merging evicted entries into kept ones, and an entry that stands for all evicted ones.
- Budgets from the gradient of an answer's log-odds, in place of the model's own targets: 5 to 6 of 18 needles.
- Larger budgets for the heads that look things up, without a score that ranks by the largest look: 6 of 18 needles.
- A score that reads the attention mass as well: no better, and it has to be computed at every compaction.
"""


def write_report(result: Result, file: Path) -> Path:
    """Write the page to `file`, and its plot to `images/quality.png` in the same folder."""
    found = [Figure(**own) for own in result["figures"]]
    picture = file.parent / "images" / "quality.png"
    _plot(found, result["curves"], picture)
    parts = [_head(result), _claims(found)]
    parts.append(
        f"![perplexity over dense by budget, and held-out loss by step](images/{picture.name})\n"
    )
    for context in sorted({own.context for own in found}):
        parts.append(_table(found, "perplexity", context, "Perplexity over dense"))
        parts.append(_table(found, "needle", context, "Needles found, over dense"))
    file.write_text("\n".join([*parts, TAIL]))
    return file


def _head(result: Result) -> str:
    form, machine = result["form"], result["machine"]
    seeds = form["seeds"]
    return HEAD.format(
        **{key: result[key] for key in ("date", "command")},
        **{key: machine[key] for key in ("processor", "cores")},
        **{key: form[key] for key in ("dense_steps", "steps", "windows")},
        amount=f"{seeds} seed{'s' if seeds > 1 else ''}",
        interval="over seeds" if seeds > 1 else "over blocks of 64 tokens",
    )


def _claims(found: Sequence[Figure]) -> str:
    lines = [
        "## Targets\n",
        "| | trained | served | entries | measured | target | |",
        "|---" * 7 + "|",
    ]
    for task, arm, way, share, target, holds in TARGETS:
        own = _at(found, task, FIRST, arm, way, share)
        if own is None:
            continue
        verdict = "met" if holds(own.over_dense) else "**missed**"
        names = f"{task} over dense | {ARMS[arm]} | {way} | {share:.0%}"
        lines.append(f"| {names} | {_shown(own)} | {target} | {verdict} |")
    return "\n".join([*lines, ""])


def _at(
    found: Sequence[Figure], task: str, context: int, arm: str, way: str, share: float
) -> Figure | None:
    key = (task, context, arm, way, share)
    matching = (o for o in found if (o.task, o.context, o.arm, o.way, o.share) == key)
    return next(matching, None)


def _shown(own: Figure) -> str:
    digits = 4 if own.task == "perplexity" else 2
    interval = (
        ""
        if own.way == "full" and own.over_dense == 1
        else f" ({own.low:.{digits}f} - {own.high:.{digits}f})"
    )
    return f"{own.over_dense:.{digits}f}{interval}"


def _table(found: Sequence[Figure], task: str, context: int, title: str) -> str:
    rows = [own for own in found if (own.task, own.context) == (task, context)]
    if not rows:
        return ""
    places = dict.fromkeys((own.share, own.way) for own in rows)
    order = ("full", *LADDER, *FLOORS)
    lines = [
        f"## {title}, {context:,} tokens\n",
        "| entries | served under | " + " | ".join(ARMS.values()) + " |",
        "|---" * (2 + len(ARMS)) + "|",
    ]
    for share, way in sorted(places, key=lambda place: (-place[0], order.index(place[1]))):
        cells = [_at(rows, task, context, arm, way, share) for arm in ARMS]
        shown = " | ".join("" if own is None else _shown(own) for own in cells)
        lines.append(f"| {share:.0%} | {way} | {shown} |")
    return "\n".join([*lines, ""])


def _plot(found: Sequence[Figure], curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    rows = [own for own in found if own.task == "perplexity" and own.context == FIRST]
    with plotted(file, 2, (11, 4)) as (budgets, steps):
        _by_budget(rows, budgets)
        _by_step(curves, steps)


def _by_budget(rows: Sequence[Figure], axis: Axes) -> None:
    """Draw the ablation: each line is one step further."""
    lines = [("untrained", way, way) for way in ("window", *LADDER)]
    lines += [("policy", LEARNED, "the same, trained under it")]
    for arm, way, label in lines:
        line = sorted((r for r in rows if (r.arm, r.way) == (arm, way)), key=lambda r: r.share)
        shares, levels = [100 * r.share for r in line], [100 * (r.over_dense - 1) for r in line]
        errors = [
            [100 * (r.over_dense - r.low) for r in line],
            [100 * (r.high - r.over_dense) for r in line],
        ]
        axis.errorbar(shares, levels, yerr=errors, marker="o", capsize=3, label=label)
    axis.axhline(0, color="grey", linestyle="--", label="dense")
    axis.set(xscale="log", xlabel="KV entries, % of the context", ylabel="perplexity over dense, %")
    axis.set_xticks(
        ticks := sorted({100 * r.share for r in rows if r.way != "full"}), [f"{t:g}" for t in ticks]
    )
    axis.minorticks_off()
    axis.set_ylim(-2, 15)
    axis.legend(fontsize="small")


def _by_step(curves: dict[str, list[dict[str, float]]], axis: Axes) -> None:
    """Draw the held-out loss of each arm as it was trained, the mean over seeds."""
    for arm, seeds in curves.items():
        steps = sorted(int(step) for step in seeds[0])
        means = [statistics.fmean(seed[str(step)] for seed in seeds) for step in steps]
        axis.plot(steps, means, marker="o", label=ARMS[arm])
    axis.set(xlabel="steps after the dense stage", ylabel="held-out loss, each as it is served")
    axis.legend(fontsize="small")
