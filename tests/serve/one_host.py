"""The HTTP application over one process of models, without Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from serve.catalog import Served
from serve.host import Host
from serve.ray.backend import delta_of
from serve.wire import Delta, ReplicaStats, Request


class OneHost:
    """A backend, and the replicas of `Changes`, that call their host themselves."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        async with aclosing(self._host.process_input(request)) as replies:
            async for reply in replies:
                yield delta_of(reply)

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self._host.stats()]

    async def hold(self, served: Served) -> str | None:
        return await self._host.hold(served)

    async def retire(self, name: str, revision: int) -> None:
        await self._host.retire(name, revision)
