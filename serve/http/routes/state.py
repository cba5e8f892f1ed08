"""GET /health, /ping, /metrics and /version: the endpoint's state, for whoever runs it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.routes.route import Route


class State(TypedDict):
    """The number of running replicas, and whether requests can be answered."""

    status: Literal["ok", "asleep", "unavailable"]
    replicas: int


class Version(TypedDict):
    """The version of LlamaHome."""

    version: str


def routes(answering: Answering) -> list[Route]:
    """Return the routes of the endpoint's state."""

    async def health() -> Response:
        running = sum(replica.running for replica in await answering.backend.replicas())
        if running:
            return JSONResponse(State(status="ok", replicas=running))
        if answering.settings.may_sleep:
            return JSONResponse(State(status="asleep", replicas=0))
        return JSONResponse(State(status="unavailable", replicas=0), 503)

    async def metrics() -> Response:
        text = answering.metrics.render(await answering.backend.replicas())
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    async def version_of_package() -> Response:
        return JSONResponse(Version(version=version("llamahome")))

    return [
        Route("/health", health, answer=State),
        Route("/ping", health, answer=State),
        Route("/metrics", metrics),
        Route("/version", version_of_package, answer=Version),
    ]
