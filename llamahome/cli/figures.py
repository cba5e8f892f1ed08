"""Tables of an evaluation's figures, and their summary in one line of JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llamahome.evaluation import Result
from llamahome.evaluation.intervals import Interval, paired_ratio


def show(name: str, results: Sequence[Result]) -> None:
    """Print a table for each context and text, under the name of the model."""
    for (context, text), own in itertools.groupby(results, lambda r: (r.context, r.text)):
        Console().print(_table(f"{name}, {context} tokens of {Path(text).name}", list(own)))


def _table(title: str, results: list[Result]) -> Table:
    runners = dict.fromkeys(result.settings["runner"] for result in results)
    tasks = list(dict.fromkeys(result.task for result in results))
    table = Table(title=f"{title}; {'; '.join(runners)}")
    columns = [column for task in tasks for column in _columns(task)]
    for column in ("policy", "budget", *columns, "KV MiB at most", "at the end"):
        table.add_column(column, justify="right")
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(json.dumps(result.policy), []).append(result)
    for own in rows.values():
        table.add_row(*_row(own, results))
    return table


def _columns(task: str) -> list[str]:
    return ["perplexity", "over dense", "KL to dense"] if task == "perplexity" else [task]


def _row(own: list[Result], results: Sequence[Result]) -> list[str]:
    """Return the cells of one policy: its name, its budget, its figures and its size."""
    entries = own[0].entries
    row = [own[0].policy["name"], "all" if entries is None else str(entries)]
    for result in own:
        values = result.values
        if result.task == "perplexity":
            kl = sum(values["kl"]) / len(values["kl"])
            row += [f"{values['perplexity']:.3f}", _percent(*over_dense(result, results))]
            row.append(f"{kl:.4f}")
        else:
            low, high = values["interval"]
            row.append(f"{values['right']}/{values['asked']} ({100 * low:.0f}-{high:.0%})")
    kv = own[0].values["kv"]
    return [*row, f"{kv['peak'] / 2**20:.1f}", f"{kv['final'] / 2**20:.1f}"]


def _percent(share: float, interval: Interval | None) -> str:
    """Return a share in percent with half its interval, such as `+2.1% ±0.4`."""
    if interval is None:
        return f"{share:+.1%}"
    low, high = interval
    return f"{share:+.1%} ±{50 * (high - low):.1f}"


def over_dense(result: Result, results: Sequence[Result]) -> tuple[float, Interval | None]:
    """Return by how much perplexity exceeds that of dense on the same text, and the interval."""
    dense = next(r for r in results if r.cell == result.cell)
    own = result.values
    return paired_ratio(own["blocks"], dense.values["blocks"], own["tokens"])


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return what the command prints last: one object for each figure."""
    return [
        {
            "task": result.task,
            "text": result.text,
            "context": result.context,
            "policy": result.policy["name"],
            "budget": result.entries,
            "runner": result.settings["runner"],
            **_figures(result, results),
            "kv_bytes": result.values["kv"]["peak"],
            "kv_bytes_final": result.values["kv"]["final"],
        }
        for result in results
    ]


def _figures(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """Return a result's figures; `interval` is that of `over_dense` or of `accuracy`."""
    if result.task == "perplexity":
        over, interval = over_dense(result, results)
        ppl = result.values["perplexity"]
        return {"perplexity": ppl, "over_dense": over, "interval": interval}
    return {name: result.values[name] for name in ("accuracy", "interval", "by_kind")}
