"""The cost of the serving shell: the raw engine, the application, HTTP, and other servers.

    python -m benchmarks.serve                 # all of it, at most 12 minutes on an idle machine
    python -m benchmarks.serve --quick --peers --chaos-file benchmarks/results/chaos-DATE.json

Every server gets the same prompts, greedy, with answers of equal length, from the same client: 32
streams at once, then one after another. They take turns, each round with prompts of its own, and
the ratios of a round are medians over the rounds. The engine is raw (tokens in and out, no text),
in the application without HTTP (`asgi`), and behind `python -m serve` (`http`). `cpu_ms` is the CPU
time of the shell's processes, which other programs on the machine hardly change. The last line is
one JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from benchmarks.chaos.__main__ import measure as chaos
from benchmarks.chaos.__main__ import summary as faults_summary
from benchmarks.draw import table
from benchmarks.engine.load import Timeline
from benchmarks.process import PeerError
from benchmarks.record import write_result
from benchmarks.serve import servers
from benchmarks.serve.load import QUICK, Figures, Form, figures, median
from benchmarks.serve.ours import Application, Raw
from benchmarks.workload import novel_ids
from serve.compose import compose_root

RAW, ASGI, HTTP, LLAMA, VLLM = "raw", "asgi", "http", "llama_cpp", "vllm"
PEERS: dict[str, Callable[[Form, int, Path], AbstractContextManager[servers.Running]]] = {
    LLAMA: servers.llama_cpp,
    VLLM: servers.vllm,
}


class Client(Protocol):
    """Sends the prompts of a run, and returns when their tokens came."""

    async def at_once(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]: ...

    async def one_by_one(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]: ...


@dataclass(frozen=True)
class Server:
    """One server under measurement.

    Attributes:
        cpu_s: returns the CPU seconds of its parts so far.
        awake: lets it run; peers are stopped in between.
    """

    client: Client
    cpu_s: Callable[[], dict[str, float]]
    awake: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass
class Runs:
    """The runs of one server, by round."""

    many: list[Figures] = field(default_factory=list)
    single: list[Figures] = field(default_factory=list)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter answers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, help="runs of every server")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--chaos-file", type=Path, help="take faults from this result of chaos")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    return parser.parse_args(arguments)


def overrides(form: Form, threads: int) -> list[str]:
    """Return what `python -m serve` is given; the raw engine has the same config."""
    slots = f"engine.slots={form.streams}"
    return [slots, f"engine.max_length={form.length}", f"engine.num_threads={threads}"]


def measure(
    form: Form, options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Runs], dict[str, str]]:
    """Return the runs of each server, and why others are missing."""
    root = compose_root(overrides(form, options.threads))
    missing = {name: "left out by --peers" for name in PEERS if name not in options.peers}
    with ExitStack() as stack:
        application = stack.enter_context(contextlib.closing(Application(root)))
        http = stack.enter_context(servers.ours(overrides(form, options.threads)))
        found = {
            RAW: Server(Raw(root), own_cpu_s),
            ASGI: Server(application, own_cpu_s),
            HTTP: Server(http.client, http.cpu_s),
        }
        for name in options.peers:
            say(f"starting {name}")
            try:
                peer = stack.enter_context(
                    PEERS[name](form, options.threads, options.work.resolve())
                )
            except (PeerError, OSError) as error:
                missing[name] = str(error)
            else:
                stack.enter_context(servers.asleep(peer.owner))
                found[name] = Server(peer.client, peer.cpu_s, partial(servers.awake, peer.owner))
        return asyncio.run(take_turns(found, form, say)), missing


def own_cpu_s() -> dict[str, float]:
    times = os.times()
    return {"process": times.user + times.system}


async def take_turns(
    found: dict[str, Server], form: Form, say: Callable[[str], None]
) -> dict[str, Runs]:
    """Run every server once a round, the first of which warms up; the order is turned each time."""
    ids = novel_ids()
    runs = {name: Runs() for name in found}
    for round_ in range(form.rounds + 1):
        many, single = form.prompts(ids, round_)
        for name in list(found)[:: 1 if round_ % 2 else -1]:
            server = found[name]
            with server.awake():
                one = await _run(server, server.client.one_by_one(single, form.answer), form)
                all_ = await _run(server, server.client.at_once(many, form.answer), form)
            if round_:
                runs[name].single.append(one)
                runs[name].many.append(all_)
            say(f"round {round_}, {name}: {all_.throughput:.0f} tokens/s, {one.ttft_ms:.0f} ms")
    return runs


async def _run(server: Server, run: Any, form: Form) -> Figures:
    before = server.cpu_s()
    lines = await run
    after = server.cpu_s()
    return figures(lines, form.answer, {part: after[part] - before[part] for part in after})


def summary(runs: dict[str, Runs]) -> dict[str, object]:
    """Return the figures that are compared over time: medians over rounds of paired ratios."""

    def paired(of: str, to: str, figure: Callable[[Figures, Figures], float], kind: str) -> float:
        pairs = zip(getattr(runs[of], kind), getattr(runs[to], kind), strict=True)
        return statistics.median(figure(own, other) for own, other in pairs)

    def ratio(own: Figures, other: Figures) -> float:
        return own.throughput / other.throughput

    def later(own: Figures, other: Figures) -> float:
        return own.ttft_ms - other.ttft_ms

    def ttft(own: Figures, other: Figures) -> float:
        return own.ttft_ms / other.ttft_ms

    cpu = median(runs[HTTP].many).cpu_ms
    engine = median(runs[RAW].many).cpu_ms["process"]
    result: dict[str, object] = {
        "shell_throughput_ratio": round(paired(HTTP, RAW, ratio, "many"), 3),
        "shell_ttft_ms": round(paired(HTTP, RAW, later, "single"), 1),
        "shell_ttft_ms_at_32": round(paired(HTTP, RAW, later, "many"), 1),
        "asgi_throughput_ratio": round(paired(ASGI, RAW, ratio, "many"), 3),
        "asgi_ttft_ms": round(paired(ASGI, RAW, later, "single"), 1),
        "shell_cpu_ms_per_1000": {
            **{name: round(own) for name, own in cpu.items() if name != "replica"},
            "replica beyond raw": round(cpu["replica"] - engine),
            "raw": round(engine),
        },
    }
    for name in (VLLM, LLAMA):
        there = name in runs
        result[f"ttft_vs_{name}"] = round(paired(HTTP, name, ttft, "single"), 2) if there else None
        result[f"throughput_vs_{name}"] = (
            round(paired(HTTP, name, ratio, "many"), 2) if there else None
        )
    return result


def show(runs: dict[str, Runs], form: Form, console: Console) -> None:
    columns = ("tokens/s", "TTFT, ms", "TPOT, ms", "CPU ms of 1,000 tokens")
    for kind, title in (("many", f"{form.streams} streams"), ("single", "one stream")):
        shown = table(f"{title}, medians of {form.rounds} rounds", ["server"], columns)
        for name, own in runs.items():
            middle = median(getattr(own, kind))
            cpu = ", ".join(f"{part} {value:.0f}" for part, value in middle.cpu_ms.items())
            numbers = (middle.throughput, middle.ttft_ms, middle.tpot_ms)
            shown.add_row(name, *(f"{value:.1f}" for value in numbers), cpu)
        console.print(shown)


def faults(file: Path | None) -> dict[str, object]:
    """Return what faults cost: of a run of `benchmarks.chaos` now, or of one that it wrote."""
    if file is not None:
        kept = json.loads(file.read_text())
        own = {name: kept[name] for name in ("failover_lost", "recovery_s")}
        return {**own, "faults_from": f"{file.name}, {kept['date']}"}
    port = f"serve.port={servers.free_port()}"
    reports, leaving = chaos(("faults",), 6, 2, [port])
    return {**faults_summary(reports, leaving), "faults_from": "this run"}


def main() -> None:
    options, console = parsed(), Console()
    form = QUICK if options.quick else Form()
    if options.rounds:
        form = Form(**{**asdict(form), "rounds": options.rounds})

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    runs, missing = measure(form, options, say)
    show(runs, form, console)
    for name, reason in missing.items():
        say(f"without {name}: {reason}")
    result = {**summary(runs), **faults(options.chaos_file), "missing": missing}
    if options.keep:
        whole = {
            "threads": options.threads,
            "form": asdict(form),
            "runs": {name: asdict(own) for name, own in runs.items()},
        }
        say(f"result in {write_result('serve', {**whole, **result})}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
