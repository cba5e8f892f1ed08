"""How many replicas: by what is scarce, which is slots, the reading of prompts, and patience.

Ray Serve takes this module along by value, so it imports nothing of ours.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

# Replicas are given up only when the others would then stay this far below the targets, so that a
# load at the edge does not start and stop one for ever.
ROOM = 0.8
TTFT_WINDOW_S = 10.0
METRICS = ("requests", "queued_tokens", "ttft_s")


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of one replica, as it reports it: a value for each of `METRICS`.

    Attributes:
        requests: those that hold a slot or wait for one.
        queued_tokens: prompt tokens that are still to be read.
        ttft_s: seconds to the first token, the longest of late, as `FirstTokens.longest`.
    """

    requests: float = 0.0
    queued_tokens: float = 0.0
    ttft_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The load up to which a replica is left alone: `slots` in use, and the others of `Load`."""

    slots: float
    queued_tokens: float
    ttft_s: float


def wanted_replicas(loads: Sequence[Load], *, target: int, requests: float, by: Targets) -> int:
    """Return how many replicas a load wants.

    Requests and unread tokens are shared out: as many replicas as bring them to their targets. Time
    to the first token is measured, and asks for one more replica when it is too long everywhere.
    One that is not late would get the next request, so then another one would not help; nor would
    it while one is starting. There are never more replicas than requests, since a prompt that is
    alone is read no faster with idle replicas around.

    Args:
        loads: those of the replicas that run.
        target: replicas that run or are starting.
        requests: all that are open, those included that no replica has yet.
        by: the load that one replica should carry.
    """
    requests = max(requests, sum(load.requests for load in loads))
    tokens = sum(load.queued_tokens for load in loads)
    share = max(requests / by.slots, tokens / by.queued_tokens)
    late = bool(loads) and min(load.ttft_s for load in loads) > by.ttft_s
    wanted = math.ceil(share)
    if late and len(loads) >= target:
        wanted = max(wanted, len(loads) + 1)
    wanted = min(wanted, math.ceil(requests))
    if wanted >= target:
        return wanted
    return target if late else min(target, math.ceil(share / ROOM))


class ScarcityPolicy:
    """`wanted_replicas` as Ray Serve calls it.

    Serve adds the delays, and the bounds of `min_replicas` and `max_replicas`.
    """

    def __init__(self, **targets: float) -> None:
        self._targets = Targets(**targets)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas wanted, and no state to keep."""
        reported = ctx.aggregated_metrics or {}
        loads = [
            Load(**{name: reported.get(name, {}).get(replica, 0.0) for name in METRICS})
            for replica in ctx.running_replicas
        ]
        wanted = wanted_replicas(
            loads,
            target=ctx.target_num_replicas,
            # Rounded: a mean over some seconds, to which a call for statistics adds a little.
            requests=round(ctx.total_num_requests),
            by=self._targets,
        )
        return wanted, {}


class FirstTokens:
    """How long requests of one replica waited for their first token, and wait now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[object, float] = {}
        self._ended: deque[tuple[float, float]] = deque()  # when, and after how many seconds

    @contextmanager
    def request(self) -> Iterator[Callable[[], bool]]:
        """Count a request for the length of the block.

        Yields:
            a function that notes a token, and returns whether it was the first.
        """
        key = object()
        self._waiting[key] = self._clock()

        def arrived() -> bool:
            start = self._waiting.pop(key, None)
            if start is not None:
                now = self._clock()
                self._ended.append((now, now - start))
            return start is not None

        try:
            yield arrived
        finally:
            self._waiting.pop(key, None)

    def longest(self) -> float:
        """Return the longest wait of the last 10 s in seconds, by requests that still wait, too."""
        now = self._clock()
        while self._ended and self._ended[0][0] < now - TTFT_WINDOW_S:
            self._ended.popleft()
        ended = max((seconds for _, seconds in self._ended), default=0.0)
        return max(ended, now - min(self._waiting.values(), default=now))
