"""Faults under load: each part of a real endpoint is killed while clients are being answered.

    python -m benchmarks.chaos [--streams 6] [--replicas 2] [serve.key=value ...]

The endpoint is `python -m serve`, the faults are signals to its processes. Clients stream seeded
answers one after another; each answer is compared with that of the same request before any fault.
An answer is lost if its status was 200 and it did not end, or ended otherwise. A fault is over with
the last refusal, loss or pause of more than a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from benchmarks.draw import table
from benchmarks.record import write_result

ROOT = Path(__file__).parents[1]
PAUSE_S = 1.0
SETTLE_S = 5.0
PATIENCE_S = 120.0
# Name of the fault, what the process's title holds, and the signal.
FAULTS = (
    ("engine", "EngineReplica", signal.SIGKILL),
    ("ingress", ":Api", signal.SIGKILL),
    ("controller", "ServeController", signal.SIGKILL),
    ("engine that hangs", "EngineReplica", signal.SIGSTOP),
)
PROMPTS = ("Name three rivers.", "Tell me a story.", "What is rain?", "Count to ten.")


@dataclass(kw_only=True)
class Outcome:
    """One request: when it was sent, when it stood still, and how it ended."""

    prompt: str
    sent: float
    ended: float = 0.0
    result: str = "refused"  # completed, differs, error or cut, once its status was 200
    text: str = ""
    bytes_at: list[float] = field(default_factory=list)

    def paused_until(self) -> float:
        """Return the end of the last pause before a chunk; 0 without one."""
        times = [self.sent, *self.bytes_at]
        return max((b for a, b in pairwise(times) if b - a > PAUSE_S), default=0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of one fault; times are seconds after it."""

    fault: str
    accepted: int
    completed: int
    lost: int
    refused: int
    recovery_s: float
    replaced_s: float


class Client:
    """A client that streams seeded answers, until it is stopped."""

    def __init__(self, url: str, model: str, expected: dict[str, str]) -> None:
        self._url = url
        self._model = model
        self._expected = expected
        self.outcomes: list[Outcome] = []

    async def run(self, first: int, stop: asyncio.Event) -> None:
        turn = first
        while not stop.is_set():
            await self.ask(PROMPTS[turn % len(PROMPTS)])
            turn += 1
            if self.outcomes[-1].result == "refused":
                await asyncio.sleep(0.1)

    async def ask(self, prompt: str) -> Outcome:
        """Ask once, on a connection of its own, as a new client would."""
        outcome = Outcome(prompt=prompt, sent=time.monotonic())
        self.outcomes.append(outcome)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 96,
            "temperature": 1.0,
            "seed": 7,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            async with (
                httpx.AsyncClient(timeout=PATIENCE_S) as http,
                http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response,
            ):
                if response.status_code == 200:
                    outcome.result = "cut"
                    await self._read(response, outcome)
        except httpx.HTTPError:
            pass
        outcome.ended = time.monotonic()
        return outcome

    async def _read(self, response: httpx.Response, outcome: Outcome) -> None:
        async for line in response.aiter_lines():
            if not line:
                continue
            outcome.bytes_at.append(time.monotonic())
            if line == "data: [DONE]":
                same = self._expected.get(outcome.prompt, outcome.text) == outcome.text
                outcome.result = "completed" if same else "differs"
                return
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                outcome.result = "error"
                return
            outcome.text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])


@contextmanager
def endpoint(overrides: list[str]) -> Iterator[tuple[psutil.Process, str, str]]:
    """Run `python -m serve`; yield its process, its URL and the model's name."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *overrides],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
            if ready is None:
                raise SystemExit("the endpoint did not start")
            _, model, _, url, *_ = ready.split()
            yield psutil.Process(process.pid), url.rstrip(","), model
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def parts(owner: psutil.Process, title: str) -> list[psutil.Process]:
    """Return the processes of one part of the endpoint, the oldest first."""
    found = []
    for child in owner.children(recursive=True):
        try:
            if title in "".join(child.cmdline()) and child.status() != psutil.STATUS_STOPPED:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda child: child.create_time())


async def inflict(
    owner: psutil.Process, url: str, clients: list[Client], fault: tuple[str, str, signal.Signals]
) -> Report:
    """Send one signal under load, and wait until the part is there again."""
    name, title, number = fault
    before = parts(owner, title)
    ready = await replicas(url)
    begun = [len(client.outcomes) - 1 for client in clients]  # those in flight count, too
    struck = time.monotonic()
    before[0].send_signal(number)
    while not await replaced(owner, url, title, before, ready):
        if time.monotonic() - struck > PATIENCE_S:
            raise SystemExit(f"{name}: not replaced within {PATIENCE_S:g} s")
        await asyncio.sleep(0.1)
    replaced_s = time.monotonic() - struck
    await asyncio.sleep(SETTLE_S)
    outcomes = [o for c, at in zip(clients, begun, strict=True) for o in c.outcomes[at:]]
    ended = [outcome for outcome in outcomes if outcome.ended > struck]
    counts = Counter(outcome.result for outcome in ended)
    faulty = [o.ended for o in ended if o.result != "completed"]
    over = max([struck, *faulty, *(outcome.paused_until() for outcome in ended)])
    accepted = len(ended) - counts["refused"]
    return Report(
        fault=name,
        accepted=accepted,
        completed=counts["completed"],
        lost=accepted - counts["completed"],
        refused=counts["refused"],
        recovery_s=round(over - struck, 1),
        replaced_s=round(replaced_s, 1),
    )


async def replaced(
    owner: psutil.Process, url: str, title: str, before: list[psutil.Process], ready: int
) -> bool:
    """Return whether a part has all its processes without the one that was hit, and all answer."""
    now = [process.pid for process in parts(owner, title)]
    whole = before[0].pid not in now and len(now) >= len(before)
    return whole and await replicas(url) >= ready


async def replicas(url: str) -> int:
    """Return the number of engine replicas that answer."""
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            answer = await http.get(f"{url}/health")
    except httpx.HTTPError:
        return 0
    return int(answer.json()["replicas"])


async def chaos(owner: psutil.Process, url: str, model: str, streams: int) -> list[Report]:
    expected: dict[str, str] = {}
    for prompt in PROMPTS:
        expected[prompt] = (await Client(url, model, {}).ask(prompt)).text
    stop = asyncio.Event()
    clients = [Client(url, model, expected) for _ in range(streams)]
    running = [asyncio.create_task(client.run(i, stop)) for i, client in enumerate(clients)]
    reports = []
    for fault in FAULTS:
        await asyncio.sleep(SETTLE_S)
        reports.append(await inflict(owner, url, clients, fault))
        print(reports[-1], file=sys.stderr, flush=True)
    stop.set()
    await asyncio.gather(*running)
    return reports


def show(reports: list[Report], console: Console) -> None:
    columns = ("accepted", "completed", "lost", "refused", "recovery, s", "replaced, s")
    shown = table("Faults under load", ["fault"], columns)
    for report in reports:
        shown.add_row(*(str(value) for value in asdict(report).values()))
    console.print(shown)


def summary(reports: list[Report]) -> dict[str, Any]:
    """Return the figures that are compared over time."""
    engines = [report for report in reports if report.fault.startswith("engine")]
    return {
        "failover_lost": sum(report.lost for report in engines),
        "recovery_s": {report.fault: report.recovery_s for report in reports},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--out", type=Path, help="result file; default: results/chaos-DATE.json")
    asked, overrides = parser.parse_known_args()
    replicas = [f"serve.{least}_replicas={asked.replicas}" for least in ("min", "max")]
    with endpoint(["serve.token_timeout_s=5", *replicas, *overrides]) as (owner, url, model):
        reports = asyncio.run(chaos(owner, url, model, asked.streams))
    show(reports, Console())
    result = summary(reports)
    rows = [asdict(report) for report in reports]
    write_result(
        "chaos",
        {"streams": asked.streams, "replicas": asked.replicas, "faults": rows, **result},
        asked.out,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
