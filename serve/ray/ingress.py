"""The ingress deployment: HTTP in front of the engine replicas."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.http.api import build_app
from serve.http.settings import HttpSettings
from serve.ray.backend import ServeBackend
from serve.ray.store import RemoteStore


@serve.ingress()
class Api:
    """One HTTP application over the handle of the engine replicas."""

    def __init__(
        self,
        engines: DeploymentHandle[Any],
        settings: HttpSettings,
        store: DeploymentHandle[Any] | None,
    ) -> None:
        self._engines = engines
        self._store = None if store is None else RemoteStore(store)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_app(ServeBackend(self._engines), self._settings, self._store)
