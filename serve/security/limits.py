"""Limits per key: token buckets that are paid ahead by an estimate and settled afterwards.

A bucket holds one minute's allowance and fills evenly. The package `limits` has no way to give back
what a request did not use, which tokens need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["requests", "tokens"]
MINUTE_S = 60.0


@dataclass(frozen=True)
class Taken:
    """The state of a bucket after something was asked of it.

    Attributes:
        ok: whether it held enough; otherwise nothing was taken.
        limit: the most that it holds.
        remaining: what is left in it.
        reset_s: seconds until it is full.
        wait_s: seconds until it holds enough.
    """

    ok: bool
    limit: int
    remaining: int
    reset_s: float
    wait_s: float = 0.0

    def rates(self, kind: Kind) -> dict[str, str]:
        """Return OpenAI's headers, without x-ratelimit."""
        return {
            f"limit-{kind}": str(self.limit),
            f"remaining-{kind}": str(self.remaining),
            f"reset-{kind}": _duration(self.reset_s),
        }


class Limiter(Protocol):
    """The buckets of all keys, here or in another process."""

    async def take(self, key: str, kind: Kind, per_minute: int, cost: int) -> Taken:
        """Take `cost` from a key's bucket, or nothing if it holds less."""

    def give(self, key: str, kind: Kind, per_minute: int, amount: int) -> None:
        """Give back what was not used; a negative amount takes what was used beyond."""


class Buckets:
    """All buckets in one process. A key's bucket is full when it is first used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[tuple[str, Kind], tuple[float, float]] = {}  # level, when

    def take(self, key: str, kind: Kind, per_minute: int, cost: int) -> Taken:
        level = self._level(key, kind, per_minute)
        ok = cost <= level
        if ok:
            level -= cost
        self._levels[key, kind] = (level, self._clock())
        return Taken(
            ok=ok,
            limit=per_minute,
            remaining=max(0, int(level)),
            reset_s=(per_minute - level) * MINUTE_S / per_minute,
            wait_s=0.0 if ok else (cost - level) * MINUTE_S / per_minute,
        )

    def give(self, key: str, kind: Kind, per_minute: int, amount: int) -> None:
        level = self._level(key, kind, per_minute) + amount
        self._levels[key, kind] = (min(level, per_minute), self._clock())

    def _level(self, key: str, kind: Kind, per_minute: int) -> float:
        level, when = self._levels.get((key, kind), (float(per_minute), self._clock()))
        filled = level + (self._clock() - when) * per_minute / MINUTE_S
        return min(filled, float(per_minute))


class LocalLimiter:
    """Buckets of this process alone."""

    def __init__(self) -> None:
        self._buckets = Buckets()

    async def take(self, key: str, kind: Kind, per_minute: int, cost: int) -> Taken:
        return self._buckets.take(key, kind, per_minute, cost)

    def give(self, key: str, kind: Kind, per_minute: int, amount: int) -> None:
        self._buckets.give(key, kind, per_minute, amount)


def _duration(seconds: float) -> str:
    """Spell a duration as OpenAI's headers do: 20ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
