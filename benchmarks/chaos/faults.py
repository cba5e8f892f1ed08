"""Faults: each part of an endpoint is killed, or stands still, while clients are answered."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

import psutil

from benchmarks.chaos.clients import PATIENCE_S, PROMPTS, Client
from benchmarks.chaos.endpoint import parts, replicas

SETTLE_S = 5.0
# Name of the fault, what the process's title holds, and the signal.
FAULTS = (
    ("engine", "EngineReplica", signal.SIGKILL),
    ("ingress", ":Api", signal.SIGKILL),
    ("controller", "ServeController", signal.SIGKILL),
    ("response store", "ResponseStore", signal.SIGKILL),
    ("engine that hangs", "EngineReplica", signal.SIGSTOP),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of one fault; times are seconds after it.

    Attributes:
        lost: accepted answers that did not end, or ended otherwise than without a fault.
        silent: those of them that looked complete to the client.
    """

    fault: str
    accepted: int
    completed: int
    lost: int
    silent: int
    refused: int
    recovery_s: float
    replaced_s: float


async def under_faults(owner: psutil.Process, url: str, model: str, streams: int) -> list[Report]:
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
        silent=counts["differs"],
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
