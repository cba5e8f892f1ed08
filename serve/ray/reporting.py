"""A replica process that reports to Ray Serve's router and autoscaler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from serve.host import Host
from serve.ray.prefixes import Published, prefix_of
from serve.ray.router import HELD, MODELS
from serve.ray.scaling import FirstTokens, Load
from serve.wire import Delta, Reply, Request


class ReportingReplica(Host):
    """A `Host` that notes what it has read, and how long requests wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._first_tokens = FirstTokens()
        self._read = Published()

    async def process_input(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Answer as `Host` does."""
        with self._first_tokens.request() as arrived:
            async with aclosing(super().process_input(request)) as replies:
                async for reply in replies:
                    if isinstance(reply, Delta) and arrived():
                        self._read.add(prefix_of(request))
                    yield reply

    def record_routing_stats(self) -> dict[str, bytes]:
        """Return what was read here, and the models in memory; Serve tells all routers."""
        return {HELD: self._read.pack(), MODELS: " ".join(self._held).encode()}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load; Serve tells the autoscaler."""
        stats = self._sum()
        load = Load(
            requests=stats.slots_used + stats.queued,
            queued_tokens=stats.queued_tokens,
            ttft_s=self._first_tokens.longest(),
        )
        return asdict(load)
