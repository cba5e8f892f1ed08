"""GET /health, /ping, /metrics and /version: the endpoint's state, for whoever runs it."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serve.http.answering import Answering
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the routes of the endpoint's state."""

    async def health() -> Response:
        running = sum(replica.running for replica in await answering.backend.replicas())
        if running:
            return JSONResponse({"status": "ok", "replicas": running})
        if answering.settings.may_sleep:
            return JSONResponse({"status": "asleep", "replicas": 0})
        return JSONResponse({"status": "unavailable", "replicas": 0}, 503)

    async def metrics() -> Response:
        text = answering.metrics.render(await answering.backend.replicas())
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    async def version_of_package() -> Response:
        return JSONResponse({"version": version("llamahome")})

    return [
        Route("/health", health),
        Route("/ping", health),
        Route("/metrics", metrics),
        Route("/version", version_of_package),
    ]
