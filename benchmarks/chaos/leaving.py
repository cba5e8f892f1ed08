"""Parts that leave: orphaned answers, a replica that is given up, an application that idles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil

from benchmarks.chaos.clients import PROMPTS, Client, Outcome
from benchmarks.chaos.endpoint import parts, replicas, slots_by_replica, slots_used

ENGINE = "EngineReplica"
# Long enough that nothing ends by itself while it is watched.
LONG = 1500
LONGEST_S = 300.0
# Some looks of a replica at the processes that it answers.
WATCHED_S = 4.0
CROWD = 6
# An endpoint that grows and shrinks within seconds.
SLEEPY = (
    "serve.min_replicas=0",
    "serve.max_replicas=2",
    "serve.upscale_delay_s=0.5",
    "serve.downscale_delay_s=3",
    "engine.slots=4",
    "serve.ingresses=1",  # one that knows where it has sent each stream
)


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Result of one part: answers that were in flight, those that ended well, and a time."""

    part: str
    answers: int
    completed: int
    seconds: float
    until: str


async def orphans(owner: psutil.Process, url: str, model: str, streams: int) -> Leaving:
    """Kill the ingress that holds most streams; time until their slots are free."""
    asked = ask_long(url, model, streams)
    try:
        await until(lambda: _are_used(url, streams), "the streams have no slots")
        await asyncio.sleep(WATCHED_S)
        if any(task.done() for task in asked):
            raise SystemExit("orphans: a stream ended before the ingress did")
        crowded = max(parts(owner, ":Api"), key=lambda process: _connections(process, url))
        crowded.kill()
        killed = time.monotonic()

        async def freed() -> bool:
            cut = sum(task.done() for task in asked)
            return cut > 0 and await slots_used(url) == streams - cut

        await until(freed, "the slots of an ingress that died were not freed")
        seconds = time.monotonic() - killed
        ended = [task.result() for task in asked if task.done()]
    finally:
        await cancel(asked)
    if {outcome.result for outcome in ended} != {"cut"}:
        raise SystemExit("orphans: an answer ended, and was not cut")
    return Leaving(
        part="orphans",
        answers=len(ended),
        completed=0,
        seconds=round(seconds, 1),
        until="their slots are free, after the ingress was killed",
    )


async def to_zero(owner: psutil.Process, url: str, model: str) -> list[Leaving]:
    """Leave an application idle, then ask it."""
    client = Client(url, model, {})
    expected = await client.ask(PROMPTS[0])
    if expected.result != "completed":
        raise SystemExit(f"to_zero: the first request was {expected.result} {expected.text}")
    idle = time.monotonic()

    async def asleep() -> bool:
        return not parts(owner, ENGINE)

    await until(asleep, "an idle application did not go to zero")
    slept = time.monotonic() - idle
    first = await Client(url, model, {PROMPTS[0]: expected.text}).ask(PROMPTS[0])
    if not first.bytes_at:
        raise SystemExit(f"to_zero: the request that found no replica was {first.result}")
    return [
        Leaving(
            part="to_zero",
            answers=1,
            completed=int(first.result == "completed"),
            seconds=round(seconds, 1),
            until=what,
        )
        for seconds, what in (
            (slept, "no replica is left, after the last answer"),
            (first.bytes_at[0] - first.sent, "the first token of the next request"),
        )
    ]


async def drain(owner: psutil.Process, url: str, model: str) -> Leaving:
    """Let the load fall while each of two replicas is in the midst of a long answer."""
    prompts = PROMPTS[:2]
    alone = await asyncio.gather(*(Client(url, model, {}, LONG).ask(prompt) for prompt in prompts))
    expected = {outcome.prompt: outcome.text for outcome in alone}
    await _crowd(url, model)
    asked = [asyncio.create_task(Client(url, model, expected, LONG).ask(p)) for p in prompts]
    try:
        await until(lambda: _have_one_each(url), "the two replicas have no stream each")
        await until(lambda: _are_replicas(url, 1), "no replica was given up")
        if all(task.done() for task in asked):
            raise SystemExit("drain: the answers ended before a replica was given up")
        outcomes = await asyncio.gather(*asked)
    finally:
        await cancel(asked)
    ended = max(outcome.ended for outcome in outcomes)

    async def left() -> bool:
        return len(parts(owner, ENGINE)) < 2

    await until(left, "a drained replica did not end")
    return Leaving(
        part="drain",
        answers=len(outcomes),
        completed=sum(outcome.result == "completed" for outcome in outcomes),
        seconds=round(max(0.0, time.monotonic() - ended), 1),
        until="the replica has ended, after the answers",
    )


async def _crowd(url: str, model: str) -> None:
    """Load the endpoint until it has two replicas."""
    stop = asyncio.Event()
    clients = [Client(url, model, {}) for _ in range(CROWD)]
    running = [asyncio.create_task(client.run(i, stop)) for i, client in enumerate(clients)]
    try:
        await until(lambda: _are_replicas(url, 2), "load brought no second replica")
    finally:
        stop.set()
        await asyncio.gather(*running)


def ask_long(
    url: str, model: str, streams: int, max_tokens: int = LONG
) -> list[asyncio.Task[Outcome]]:
    """Begin streams of `max_tokens` tokens."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(streams)]
    return [asyncio.create_task(Client(url, model, {}, max_tokens).ask(p)) for p in prompts]


def _connections(process: psutil.Process, url: str) -> int:
    port = int(url.rpartition(":")[2])
    own = [c for c in process.net_connections(kind="tcp") if c.laddr.port == port]
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in own)


async def _are_used(url: str, slots: int) -> bool:
    return await slots_used(url) == slots


async def _have_one_each(url: str) -> bool:
    return await slots_by_replica(url) == [1, 1]


async def _are_replicas(url: str, count: int) -> bool:
    return await replicas(url) == count


async def until(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Wait for a condition; end the run with the reason if it does not come."""
    end = time.monotonic() + LONGEST_S
    while not await condition():
        if time.monotonic() > end:
            raise SystemExit(f"{otherwise} within {LONGEST_S:g} s")
        await asyncio.sleep(0.1)


async def cancel(tasks: list[asyncio.Task[Outcome]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
