"""Tables and the plot of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.draw import plotted, table
from benchmarks.engine.results import OURS, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KV_BYTES = 2e9  # memory for KV in `requests_table`


def show(results: Results, console: Console) -> None:
    """Print a table for each kind of figure, then what is missing."""
    for made in (
        decode_table(results),
        prefill_table(results),
        memory_table(results),
        requests_table(results),
        load_table(results),
    ):
        if made.row_count:
            console.print(made)
    for context, seconds in results.flat.items():
        console.print(f"at one budget after {context:,} tokens: {1e3 * seconds:.3f} ms per token")
    for line in (
        *(f"{arm}: {runner}" for arm, runner in results.runners.items()),
        *(f"missing: {name}: {why}" for name, why in results.missing.items()),
        *(f"failed: {line}" for line in results.failures),
        *(f"no time for: {line}" for line in results.skipped),
    ):
        console.print(line, markup=False)


def decode_table(results: Results) -> Table:
    cells = list(dict.fromkeys((d.batch, d.context) for d in results.decode))
    columns = [f"{batch} x {context:,}" for batch, context in cells]
    made = table("Decode, tokens/s of all requests (requests x context)", [""], columns)
    for arm in results.arms():
        made.add_row(arm, *(_number(results.decoded(arm, *cell), ".1f") for cell in cells))
    return made


def prefill_table(results: Results) -> Table:
    contexts = list(dict.fromkeys(p.context for p in results.prefill))
    made = table("Prefill, tokens/s of one prompt", [""], [f"{n:,}" for n in contexts])
    for arm in dict.fromkeys(p.arm for p in results.prefill):
        made.add_row(arm, *(_number(results.prefilled(arm, n), ".0f") for n in contexts))
    return made


def memory_table(results: Results) -> Table:
    made = table("Memory in decoding", [""], ["requests x context", "KV MiB", "peak MiB"])
    for d in results.decode:
        if d.batch == results.many:
            cell = f"{d.batch} x {d.context:,}"
            made.add_row(d.arm, cell, f"{d.kv_bytes / 2**20:.0f}", f"{d.peak_mib:.0f}")
    return made


def requests_table(results: Results) -> Table:
    arms = [arm for arm in OURS if any(arm in own for own in results.slot_bytes.values())]
    made = table("Requests in 2 GB of KV", ["context"], ["dense float16", *arms])
    for context, own in results.slot_bytes.items():
        every = [results.dense_fp16_bytes[context], *(own.get(arm) for arm in arms)]
        fit = ("-" if n is None else f"{KV_BYTES // n:.0f}" for n in every)
        made.add_row(f"{context:,}", *fit)
    return made


def load_table(results: Results) -> Table:
    columns = ("requests", "a second", "at most", "TTFT p50", "p99", "TPOT p50", "p99")
    made = table(
        "Poisson load: requests, ms to the first token and per token after it", [""], columns
    )
    for arm, own in results.load.items():
        made.add_row(
            arm,
            str(own.requests),
            f"{own.rate:.2f}",
            f"{own.capacity:.2f}",
            f"{1e3 * own.ttft_p50:.0f}",
            f"{1e3 * own.ttft_p99:.0f}",
            f"{1e3 * own.tpot_p50:.1f}",
            f"{1e3 * own.tpot_p99:.1f}",
        )
    return made


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def plot(results: Results, file: Path) -> None:
    """Draw tokens per second over the context, and our speed over the peers'."""
    with plotted(file, 2, (13, 4.5)) as (speed, bars):
        _lines(results, speed)
        _bars(results, bars)


def _lines(results: Results, axes: Axes) -> None:
    for arm in results.arms():
        own = _speeds(results, arm)
        style = "-" if arm in OURS else "--"
        axes.plot([c for c, _ in own], [t for _, t in own], style, marker="o", label=arm)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens of context",
        ylabel="tokens/s",
        title=f"decode, {results.many} requests",
    )
    contexts = sorted({d.context for d in results.decode})
    axes.set_xticks(contexts, [f"{n:,}" for n in contexts])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _speeds(results: Results, arm: str) -> list[tuple[int, float]]:
    """Return (context, tokens per second) of `results.many` requests."""
    own = (d for d in results.decode if d.arm == arm and d.batch == results.many)
    return sorted((d.context, d.tokens_per_second) for d in own)


def _bars(results: Results, axes: Axes) -> None:
    """Draw our speed over each peer's at the headline's context, as a factor."""
    peers = [
        (peer, theirs)
        for peer in results.peers()
        if (theirs := results.decoded(peer, results.many, results.headline))
    ]
    height = 0.8 / len(OURS)
    for number, arm in enumerate(OURS):
        ours = results.decoded(arm, results.many, results.headline)
        if ours is None:
            continue
        places = [place + (number - 1) * height for place in range(len(peers))]
        drawn = axes.barh(places, [ours / theirs for _, theirs in peers], height, label=arm)
        axes.bar_label(drawn, fmt="%.1fx", fontsize=8, padding=2)
    axes.set_yticks(range(len(peers)), [peer for peer, _ in peers])
    axes.margins(x=0.15)
    axes.set(
        xlabel="times the peer's tokens/s",
        title=f"{results.many} requests x {results.headline:,} tokens",
    )
    if axes.patches:
        axes.legend(fontsize=8)
