"""Cells of the benchmark: engines take turns at the same work, and every turn is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.engine.results import Decode, Prefill
from benchmarks.process import PeerError
from benchmarks.workload import cut

Reply = dict[str, Any]


class Answering(Protocol):
    """The part of `benchmarks.process.Process` that an arm uses."""

    def ask(self, cmd: str, **arguments: Any) -> Reply: ...
    def close(self) -> None: ...


@dataclass(kw_only=True)
class Arm:
    """One engine in one setting.

    Attributes:
        start: starts its process.
        load: arguments of its `load`.
        crowd: whether it takes part in cells of many requests, where memory is short.
        failures: one line per error, with its cell.
        missing: why it does not load; it is then asked nothing more.
    """

    name: str
    start: Callable[[], Answering]
    load: dict[str, Any]
    crowd: bool = True
    ours: bool = False
    failures: list[str] = field(default_factory=list)
    missing: str | None = None
    _process: Answering | None = None

    def ask(self, cell: str, cmd: str, **arguments: Any) -> Reply | None:
        """Return a reply; on failure note it, end the process and return None.

        The next command starts a new process.
        """
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
    """Length of a turn, and how many turns each engine has."""

    rounds: int = 3
    steps: int = 60  # three rounds after 8,000 tokens stay within the trained 8,192
    seconds: float = 1.5


def decode_cell(
    arms: Sequence[Arm], batch: int, context: int, ids: Sequence[int], turns: Turns
) -> list[Decode]:
    """Fill the caches of every engine, then let all take turns at decoding."""
    cell = f"decode {batch} x {context}"
    prompts = [cut(ids, context, number) for number in range(batch)]
    filled = {}
    for arm in arms:
        reply = arm.ask(cell, "fill", prompts=prompts)
        if reply is not None:
            filled[arm.name] = reply
    replies: dict[str, list[Reply]] = {name: [] for name in filled}
    for _ in range(turns.rounds):
        for arm in (arm for arm in arms if arm.name in filled):
            reply = arm.ask(cell, "decode", max_steps=turns.steps, seconds=turns.seconds)
            if reply is None:
                del filled[arm.name]  # its caches are lost, so its earlier turns do not count
            else:
                replies[arm.name].append(reply)
    for arm in (arm for arm in arms if arm.name in filled):
        arm.ask(cell, "drop")
    return [
        Decode(
            arm=name,
            batch=batch,
            context=context,
            rounds=[batch * len(r["steps"]) / sum(r["steps"]) for r in replies[name]],
            peak_mib=max(r["peak_mib"] for r in replies[name]),
            kv_bytes=reply["kv_bytes"],
        )
        for name, reply in filled.items()
    ]


def prefill_cell(
    arms: Sequence[Arm], context: int, ids: Sequence[int], rounds: int
) -> list[Prefill]:
    """Time the prefill of one prompt, another one each round.

    The last prompt is the first of `decode_cell`, so that an engine may keep its cache.
    """
    cell = f"prefill {context}"
    replies: dict[str, list[Reply]] = {arm.name: [] for arm in arms}
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
    """Return seconds per token by context: engines of one budget take turns at decoding."""
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
