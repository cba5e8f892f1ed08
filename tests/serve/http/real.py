"""The HTTP application over a real engine, in one process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.ray.backend import delta_of
from serve.replica import Replica
from serve.wire import Delta, ReplicaStats, Reply, Request


class OneReplica:
    """A backend that is a replica in this process."""

    def __init__(self, model: Path) -> None:
        self.replica = Replica(
            ModelConfig(name=str(model)),
            PolicyConfig(name="h2o", budget=32, recent=16, interval=8),
            EngineConfig(slots=4, max_queued=64, max_length=256, num_threads=1),
        )

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        replies = cast(AsyncGenerator[Reply, None], self.replica.process_input(request))
        async with aclosing(replies):
            async for reply in replies:
                yield delta_of(reply)

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self.replica.stats()]
