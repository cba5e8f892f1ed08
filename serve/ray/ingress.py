"""The ingress deployment: HTTP in front of the engine replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.api import HttpSettings, build_app
from serve.ray.backend import ServeBackend
from serve.ray.limiter import RemoteLimiter


@serve.ingress()
class Api:
    """One HTTP application over the handle of the engine replicas."""

    def __init__(
        self,
        engines: DeploymentHandle[Any],
        settings: HttpSettings,
        limits: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._engines = engines
        self._settings = settings
        self._limiter = None if limits is None else RemoteLimiter(limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = build_app(ServeBackend(self._engines), self._settings, self._limiter)
        return WithoutRequestId(app)


@dataclass(frozen=True)
class WithoutRequestId:
    """Drops X-Request-Id from answers, since Ray's proxy adds the same one to them."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self.app(scope, receive, without)
