"""The whole endpoint is stopped: answers in flight, seconds, and processes that are left."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil

from benchmarks.chaos.clients import PATIENCE_S, Outcome
from benchmarks.chaos.endpoint import slots_used
from benchmarks.chaos.leaving import LONG, Leaving, ask_long, cancel, until

# Some seconds of one answer.
SHORT = 300
BETWEEN_S = 1.0


async def stop(owner: psutil.Process, url: str, model: str, streams: int) -> Leaving:
    """Send SIGTERM while answers are in flight that end within `serve.drain_s`."""
    asked = await _in_flight(url, model, streams, SHORT)
    started = owner.children(recursive=True)
    owner.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    outcomes = await asyncio.gather(*asked)
    _check_end(owner, started)
    return Leaving(
        part="stop",
        answers=streams,
        completed=sum(outcome.result == "completed" for outcome in outcomes),
        seconds=round(time.monotonic() - begin, 1),
        until="all processes have ended, after SIGTERM",
    )


async def stop_twice(owner: psutil.Process, url: str, model: str, streams: int) -> Leaving:
    """Press Ctrl-C twice, as a terminal sends it: to the whole group of processes."""
    asked = await _in_flight(url, model, streams, LONG)
    started = owner.children(recursive=True)
    try:
        os.killpg(owner.pid, signal.SIGINT)
        await asyncio.sleep(BETWEEN_S)
        if not owner.is_running() or any(task.done() for task in asked):
            raise SystemExit("stop_twice: one Ctrl-C did not wait for the answers")
        os.killpg(owner.pid, signal.SIGINT)
        begin = time.monotonic()
        await asyncio.to_thread(_check_end, owner, started)
        seconds = time.monotonic() - begin
        outcomes = await asyncio.gather(*asked)
    finally:
        await cancel(asked)
    return Leaving(
        part="stop_twice",
        answers=streams,
        completed=sum(outcome.result == "completed" for outcome in outcomes),
        seconds=round(seconds, 1),
        until="all processes have ended, after a second Ctrl-C",
    )


async def _in_flight(
    url: str, model: str, streams: int, max_tokens: int
) -> list[asyncio.Task[Outcome]]:
    asked = ask_long(url, model, streams, max_tokens)

    async def flows() -> bool:
        return await slots_used(url) == streams

    await until(flows, "the streams have no slots")
    return asked


def _check_end(owner: psutil.Process, started: list[psutil.Process]) -> None:
    """Wait for the endpoint's process, which must not leave one of its own behind."""
    owner.wait(PATIENCE_S)
    left = [process for process in started if process.is_running()]
    if left:
        raise SystemExit(f"processes were left: {left}")
