"""An engine replica that reports to Ray Serve's router and autoscaler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from serve.ray.lines import Lines
from serve.ray.prefixes import Published, prefix_of
from serve.ray.router import HELD
from serve.ray.scaling import FirstTokens, Load
from serve.replica import Replica
from serve.wire import Delta, Reply, ReplyTo, Request


class ReportingReplica(Replica):
    """A `Replica` that notes what it has read, and how long requests wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._first_tokens = FirstTokens()
        self._read = Published()
        self._lines = Lines()

    async def process_input(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Answer as `Replica` does."""
        with self._first_tokens.request() as arrived:
            async with aclosing(super().process_input(request)) as replies:
                async for reply in replies:
                    if isinstance(reply, Delta) and arrived():
                        self._read.add(prefix_of(request))
                    yield reply

    async def answer(self, request: Request, to: ReplyTo) -> None:
        """Send the replies to one input to its ingress; return after the last.

        Raises:
            OSError: when the ingress cannot be reached.
        """
        line = await self._lines.to(to)
        with line.used():
            async with aclosing(self.process_input(request)) as replies:
                async for reply in replies:
                    line.send(to.number, reply)
            line.send(to.number, None)

    def record_routing_stats(self) -> dict[str, bytes]:
        """Return the beginnings of prompts that were read here; Serve tells all routers."""
        return {HELD: self._read.pack()}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load; Serve tells the autoscaler."""
        stats = self._async_engine.stats()
        load = Load(
            requests=stats.slots_used + stats.queued,
            queued_tokens=stats.queued_tokens,
            ttft_s=self._first_tokens.longest(),
        )
        return asdict(load)
