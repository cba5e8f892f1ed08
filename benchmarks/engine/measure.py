"""Engines take turns at the same work; each figure keeps what every turn gave."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.engine.peers import PeerError
from benchmarks.engine.results import Decode, Prefill


class Answering(Protocol):
    """What is needed of `engine_peers.Process`."""

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]: ...
    def close(self) -> None: ...


@dataclass(kw_only=True)
class Arm:
    """One engine in one setting.

    Attributes:
        start: starts its process.
        load: arguments of its `load`.
        crowd: whether it takes part with many requests, where memory is short.
        failures: what went wrong, with the cell.
    """

    name: str
    start: Callable[[], Answering]
    load: dict[str, Any]
    crowd: bool = True
    ours: bool = False
    failures: list[str] = field(default_factory=list)
    missing: str | None = None
    _process: Answering | None = None

    def ask(self, cell: str, cmd: str, **arguments: Any) -> dict[str, Any] | None:
        """A reply, or None, with the failure written down; an engine that ended starts anew."""
        if self.missing is not None:
            return None
        try:
            return self._running().ask(cmd, **arguments)
        except PeerError as error:
            if self._process is None:
                self.missing = str(error)
            self.failures.append(f"{self.name}, {cell}: {error}")
            self.close()
            return None

    def _running(self) -> Answering:
        if self._process is None:
            process = self.start()
            try:
                process.ask("load", **self.load)
            except PeerError:
                process.close()
                raise
            self._process = process
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How long each engine measures before the next one does."""

    rounds: int = 3
    steps: int = 60  # three rounds after 8,000 tokens stay within the trained 8,192
    seconds: float = 1.5


def cut(ids: Sequence[int], length: int, number: int) -> list[int]:
    """A prompt of a text; another number begins elsewhere, so that no two share a prefix."""
    start = number * 997 % (len(ids) - length)
    return list(ids[start : start + length])


def decode_cell(
    arms: Sequence[Arm], batch: int, context: int, ids: Sequence[int], turns: Turns
) -> list[Decode]:
    """Every engine holds its filled caches while all take turns at decoding."""
    cell = f"decode {batch} x {context}"
    prompts = [cut(ids, context, number) for number in range(batch)]
    filled = {}
    for arm in arms:
        reply = arm.ask(cell, "fill", prompts=prompts)
        if reply is not None:
            filled[arm.name] = reply
    replies: dict[str, list[dict[str, Any]]] = {name: [] for name in filled}
    for _ in range(turns.rounds):
        for arm in arms:
            # Whoever failed has lost its caches, and what it gave before.
            if arm.name in filled:
                reply = arm.ask(cell, "decode", max_steps=turns.steps, seconds=turns.seconds)
                if reply is None:
                    del filled[arm.name]
                else:
                    replies[arm.name].append(reply)
    measured = []
    for arm in arms:
        if arm.name in filled:
            own = replies[arm.name]
            measured.append(
                Decode(
                    arm=arm.name,
                    batch=batch,
                    context=context,
                    rounds=[batch * len(r["steps"]) / sum(r["steps"]) for r in own],
                    peak_mib=max(r["peak_mib"] for r in own),
                    kv_bytes=filled[arm.name]["kv_bytes"],
                )
            )
            arm.ask(cell, "drop")
    return measured


def prefill_cell(
    arms: Sequence[Arm], context: int, ids: Sequence[int], rounds: int
) -> list[Prefill]:
    """One prompt at a time, a new one each round; the last is the first that decoding takes."""
    cell = f"prefill {context}"
    replies: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for number in reversed(range(rounds)):
        for arm in arms:
            reply = arm.ask(cell, "prefill", prompt=cut(ids, context, number))
            if reply is not None:
                replies[arm.name].append(reply)
    return [
        Prefill(
            arm=name,
            context=context,
            rounds=[context / r["seconds"] for r in own],
            peak_mib=max(r["peak_mib"] for r in own),
        )
        for name, own in replies.items()
        if own
    ]


def flat_cell(
    arms: dict[int, Arm], batch: int, ids: Sequence[int], turns: Turns
) -> dict[int, float]:
    """Seconds per token at one budget after contexts of different length, taking turns."""
    seconds: dict[int, list[float]] = {}
    try:
        for context, arm in arms.items():
            prompts = [cut(ids, context, number) for number in range(batch)]
            if arm.ask(f"flat {context}", "fill", prompts=prompts) is not None:
                seconds[context] = []
        for _ in range(turns.rounds):
            for context, own in seconds.items():
                cell, steps = f"flat {context}", turns.steps
                reply = arms[context].ask(cell, "decode", max_steps=steps, seconds=0.0)
                if reply is not None:
                    own.append(sum(reply["steps"]) / len(reply["steps"]) / batch)
    finally:
        for arm in arms.values():
            arm.close()
    return {context: statistics.median(own) for context, own in seconds.items() if own}


class Clock:
    """What is left of the time that the whole run may take."""

    def __init__(self, minutes: float) -> None:
        self._start = time.monotonic()
        self._limit = minutes

    @property
    def minutes(self) -> float:
        """Since the start."""
        return (time.monotonic() - self._start) / 60

    @property
    def over(self) -> bool:
        return self.minutes > self._limit
