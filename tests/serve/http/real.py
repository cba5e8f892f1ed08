"""The HTTP application over a real engine, in one process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.ray.backend import delta_of
from serve.replica import Replica
from serve.wire import Delta, ReplicaStats, Request


class OneReplica:
    """A backend that is a replica in this process."""

    def __init__(self, model: Path) -> None:
        self.replica = Replica(
            ModelConfig(name=str(model)),
            PolicyConfig(name="h2o", budget=32, recent=16, interval=8),
            EngineConfig(slots=4, max_queued=64, max_length=256, num_threads=1),
        )

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        async with aclosing(self.replica.process_input(request)) as replies:
            async for reply in replies:
                yield delta_of(reply)

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self.replica.stats()]
