"""Faults under load: each part of a real endpoint is killed while clients are being answered.

    python -m benchmarks.chaos [--streams 6] [--replicas 2] [--only drain,to_zero] [serve.key=..]

The endpoint is `python -m serve`, the faults are signals to its processes. Clients stream seeded
answers one after another; each answer is compared with that of the same request before any fault.
An answer is lost if its status was 200 and it did not end, or ended otherwise. A fault is over with
the last refusal, loss or pause of more than a second.

Then come parts that leave: an ingress that dies with streams in flight, whose slots must be freed
(`orphans`), a replica that is given up with answers in flight (`drain`), and an application that
goes to zero and is asked (`to_zero`). At last the endpoint itself is stopped, by SIGTERM (`stop`)
and by two Ctrl-C (`stop_twice`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chaos.endpoint import endpoint
from benchmarks.chaos.faults import Report, under_faults
from benchmarks.chaos.leaving import SLEEPY, Leaving, drain, orphans, to_zero
from benchmarks.chaos.stopping import stop, stop_twice
from benchmarks.draw import table
from benchmarks.record import write_result

PARTS = ("faults", "orphans", "drain", "to_zero", "stop", "stop_twice")


def show(reports: list[Report], console: Console) -> None:
    columns = ("accepted", "completed", "lost", "silent", "refused", "recovery, s", "replaced, s")
    shown = table("Faults under load", ["fault"], columns)
    for report in reports:
        shown.add_row(*(str(value) for value in asdict(report).values()))
    console.print(shown)


def show_leaving(leaving: list[Leaving], console: Console) -> None:
    shown = table("Parts that leave", ["part"], ("answers", "completed", "seconds", "until"))
    for part in leaving:
        shown.add_row(*(str(value) for value in asdict(part).values()))
    console.print(shown)


def summary(reports: list[Report], leaving: list[Leaving]) -> dict[str, Any]:
    """Return the figures that are compared over time."""
    engines = [report for report in reports if report.fault.startswith("engine")]
    return {
        "failover_lost": sum(report.lost for report in engines),
        "recovery_s": {report.fault: report.recovery_s for report in reports},
        "leaving_s": {f"{part.part}: {part.until}": part.seconds for part in leaving},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="result file; default: results/chaos-DATE.json")
    asked, overrides = parser.parse_known_args()
    reports, leaving = measure(asked.only, asked.streams, asked.replicas, overrides)
    show(reports, Console())
    show_leaving(leaving, Console())
    result = summary(reports, leaving)
    rows: dict[str, Sequence[Any]] = {"faults": reports, "leaving": leaving}
    write_result(
        "chaos",
        {
            "streams": asked.streams,
            "replicas": asked.replicas,
            **{name: [asdict(row) for row in own] for name, own in rows.items()},
            **result,
        },
        asked.out,
    )
    print(json.dumps(result))


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(PARTS)}")
    return names


def measure(
    only: tuple[str, ...], streams: int, replicas: int, overrides: list[str]
) -> tuple[list[Report], list[Leaving]]:
    reports: list[Report] = []
    leaving: list[Leaving] = []
    fixed = [f"serve.{least}_replicas={replicas}" for least in ("min", "max")]
    if {"faults", "orphans"} & set(only):
        with endpoint(["serve.token_timeout_s=5", *fixed, *overrides]) as running:
            if "orphans" in only:
                leaving.append(_told(asyncio.run(orphans(*running, streams))))
            if "faults" in only:
                reports += asyncio.run(under_faults(*running, streams))
    if {"drain", "to_zero"} & set(only):
        with endpoint([*SLEEPY, *overrides]) as running:
            if "to_zero" in only:
                leaving += map(_told, asyncio.run(to_zero(*running)))
            if "drain" in only:
                leaving.append(_told(asyncio.run(drain(*running))))
    for name, part in (("stop", stop), ("stop_twice", stop_twice)):
        if name in only:
            with endpoint(overrides) as running:
                leaving.append(_told(asyncio.run(part(*running, streams))))
    return reports, leaving


def _told(part: Leaving) -> Leaving:
    print(part, file=sys.stderr, flush=True)
    return part


if __name__ == "__main__":
    main()
