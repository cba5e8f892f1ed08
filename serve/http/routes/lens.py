"""GET /v1/lens: the cache that a request gets, and whether a chat may look into it."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import Response
from fastapi.responses import JSONResponse

from llamahome.config.policy import POLICIES
from serve.http.answering import Answering
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the route that describes the cache."""

    async def lens() -> Response:
        replicas = await answering.backend.replicas()
        cache = next((replica.cache for replica in replicas if replica.cache), None)
        return JSONResponse(
            {
                "lens": answering.settings.lens,
                "kv_policies": POLICIES,
                "cache": None if cache is None else asdict(cache),
            }
        )

    return [Route("/v1/lens", lens)]
