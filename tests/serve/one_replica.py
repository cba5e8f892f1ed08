"""The HTTP application over one replica in this process, for the clients of several APIs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.catalog import Catalog, Served
from serve.http.api import build_app
from serve.http.changes import LocalCatalog
from serve.http.errors import ApiError
from serve.http.settings import HttpSettings
from serve.http.stateful.store import Store
from serve.ray.reporting import ReportingReplica
from serve.security.call import CALL
from serve.tracing import Tracing
from serve.wire import Delta, Failure, ReplicaStats, Request


class OneReplica:
    """A backend that calls its replica itself."""

    def __init__(self, replica: ReportingReplica) -> None:
        self._replica = replica

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        call = CALL.get()
        origin = None if call is None else call.origin
        async for reply in self._replica.process_input(request, origin):
            if isinstance(reply, Failure):
                status = 400 if reply.kind == "invalid" else 500
                raise ApiError(status, reply.message, param=reply.field)
            if isinstance(reply, Delta):
                yield reply

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self._replica.stats()]


@asynccontextmanager
async def served(model: Path, **options: Any) -> AsyncIterator[ASGIApp]:
    """Yield a new application, as `serving` does."""
    with serving(model, **options) as app:
        yield app


@contextmanager
def serving(
    model: Path,
    *,
    settings: dict[str, Any] | None = None,
    store: Store | None = None,
    tracing: Tracing | None = None,
    **engine: Any,
) -> Iterator[ASGIApp]:
    """Yield a new application; `settings` are those of HTTP."""
    tiny = Served(
        name="tiny",
        root="tiny",
        model=ModelConfig(name=str(model)),
        policy=PolicyConfig(budget=64, recent=16, interval=8),
        engine=EngineConfig(**{"slots": 4, "max_length": 512, "num_threads": 1, **engine}),
    )
    replica = ReportingReplica(tiny, tracing=tracing)
    http_settings = HttpSettings(
        **{
            "model_id": "tiny",
            "created": 1,
            "request_timeout_s": 60,
            "max_body_bytes": 100_000,
            **(settings or {}),
        }
    )
    try:
        models = LocalCatalog(Catalog((tiny,)))
        yield build_app(
            OneReplica(replica), http_settings, store=store, models=models, tracing=tracing
        )
    finally:
        replica.close()
