"""Responses that are kept for a while, so that a client can read them and go on from them."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One response.

    Attributes:
        owner: digest of the key that it was made with; no other key finds it.
        response: as the client got it.
        turns: the conversation up to and with its answer, without instructions.
    """

    owner: str
    response: dict[str, Any]
    turns: list[dict[str, Any]]

    def size(self) -> int:
        """Return its bytes as JSON."""
        return len(json.dumps([self.response, self.turns]))


class Store(Protocol):
    """A place for responses that every ingress process shares."""

    async def put(self, key: str, stored: Stored) -> None:
        """Keep a response."""

    async def get(self, key: str, owner: str) -> Stored | None:
        """Return the owner's response, if it is still there."""

    async def delete(self, key: str, owner: str) -> bool:
        """Drop the owner's response; return whether it was there."""


class MemoryStore:
    """A store in this process: the least recently used leave first, and all after a time.

    Args:
        max_bytes: size of all responses together.
        max_age_s: seconds that a response is kept.
        clock: time in seconds.
    """

    def __init__(
        self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, int, Stored]] = OrderedDict()
        self._bytes = 0

    async def put(self, key: str, stored: Stored) -> None:
        """Keep a response; others leave until all fit."""
        self._expire()
        size = stored.size()
        if size > self._max_bytes:
            return
        self._kept[key] = (self._clock() + self._max_age_s, size, stored)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    async def get(self, key: str, owner: str) -> Stored | None:
        """Return the owner's response, if it is still there."""
        self._expire()
        found = self._kept.get(key)
        if found is None or found[2].owner != owner:
            return None
        self._kept.move_to_end(key)
        return found[2]

    async def delete(self, key: str, owner: str) -> bool:
        """Drop the owner's response; return whether it was there."""
        if await self.get(key, owner) is None:
            return False
        self._drop(key)
        return True

    def _expire(self) -> None:
        now = self._clock()
        for key in [key for key, (until, *_) in self._kept.items() if until <= now]:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._bytes -= self._kept.pop(key)[1]
