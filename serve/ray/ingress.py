"""The ingress deployment: HTTP in front of the engine replicas.

Its replicas listen themselves, all on one port. Ray Serve's own proxy would be one more process
that every token passes, without limits on headers, bodies and connections, and with routes of its
own that ask for no key.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serve.catalog import Catalog
from serve.http.api import build_app
from serve.http.changes import Changes, Sources
from serve.http.metrics import FOLDER, share_metrics
from serve.http.server import EdgeLimits, HttpServer
from serve.http.settings import HttpSettings
from serve.ray.backend import ServeBackend
from serve.ray.limiter import RemoteLimiter
from serve.ray.mailbox import DirectCalls, Mailbox
from serve.ray.recovery import Deadlines
from serve.ray.shared_catalog import SharedCatalog
from serve.ray.store import RemoteStore
from serve.ray.watching import Watching


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Address of an ingress and limits of its connections, as HttpServer takes them."""

    host: str
    port: int
    limits: EdgeLimits
    grace_s: float
    tls: tuple[str, str] | None = None


class Api:
    """One HTTP server over the handle of the engine replicas."""

    async def __init__(  # type: ignore[misc]
        self,
        engines: DeploymentHandle[Any],
        settings: HttpSettings,
        models: tuple[Catalog, Sources],
        listening: Listening,
        deadlines: Deadlines,
        watching: Watching,
        limits: DeploymentHandle[Any] | None = None,
        store: DeploymentHandle[Any] | None = None,
    ) -> None:
        _, self._tracing = watching.begin()
        share_metrics(os.environ[FOLDER])
        limiter = None if limits is None else RemoteLimiter(limits)
        kept = None if store is None else RemoteStore(store)
        self._mailbox = Mailbox()
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        await self._mailbox.start(address)
        calls = DirectCalls(engines.answer, self._mailbox)
        catalog, sources = models
        shared = SharedCatalog(catalog)
        backend = ServeBackend(engines, calls, deadlines)
        changes = Changes(shared, backend, sources)
        app = build_app(backend, settings, limiter, kept, shared, changes, self._tracing)
        self._server = HttpServer(app, **vars(listening))
        await self._server.start()

    def check_health(self) -> None:
        """Raise ServerStoppedError when the server has ended; Serve then replaces the ingress."""
        self._server.check()

    async def __del__(self) -> None:
        """Answer the open requests and stop; Serve awaits this."""
        if hasattr(self, "_server"):  # an address that cannot be listened on leaves none
            await self._server.stop()
            self._mailbox.close()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)
