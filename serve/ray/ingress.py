"""The ingress deployment: HTTP in front of the engine replicas."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.http.api import HttpSettings, build_app
from serve.ray.backend import ServeBackend
from serve.ray.recovery import Deadlines


@serve.ingress()
class Api:
    """One HTTP application over the handle of the engine replicas."""

    def __init__(
        self, engines: DeploymentHandle[Any], settings: HttpSettings, deadlines: Deadlines
    ) -> None:
        self._engines = engines
        self._settings = settings
        self._deadlines = deadlines

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_app(ServeBackend(self._engines, self._deadlines), self._settings)
