"""A replica process that reports to Ray Serve's router and autoscaler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serve.host import Host
from serve.ray.lines import Lines
from serve.ray.prefixes import Published, prefix_of
from serve.ray.router import HELD, MODELS
from serve.ray.scaling import FirstTokens, Load
from serve.wire import Delta, Origin, Reply, ReplyTo, Request

if TYPE_CHECKING:
    from serve.tracing import Tracing


class ReportingReplica(Host):
    """A `Host` that notes what it has read, how long requests wait, and traces."""

    def __init__(self, *args: Any, tracing: Tracing | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tracing = tracing
        self._first_tokens = FirstTokens()
        self._read = Published()
        self._lines = Lines()

    async def process_input(
        self, request: Request, origin: Origin | None = None
    ) -> AsyncGenerator[Reply, None]:
        """Answer as `Host` does."""
        with self._first_tokens.request() as arrived:
            replies = super().process_input(request, origin)
            if self._tracing is not None and origin is not None:
                replies = self._tracing.answer(replies, request, origin)
            async with aclosing(replies):
                async for reply in replies:
                    if isinstance(reply, Delta) and arrived():
                        self._read.add(prefix_of(request))
                    yield reply

    async def answer(self, request: Request, to: ReplyTo, origin: Origin | None = None) -> None:
        """Send the replies to one input to its ingress; return after the last.

        Raises:
            OSError: when the ingress cannot be reached.
        """
        line = await self._lines.to(to)
        with line.used():
            async with aclosing(self.process_input(request, origin)) as replies:
                async for reply in replies:
                    line.send(to.number, reply)
            line.send(to.number, None)

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
