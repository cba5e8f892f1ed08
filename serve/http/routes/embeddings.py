"""POST /v1/embeddings."""

from __future__ import annotations

from contextlib import aclosing

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.protocol import EmbeddingRequest
from serve.http.responses import embeddings_of
from serve.http.routes.route import Route
from serve.wire import Delta

# A long list of texts waits here, so that one request does not fill the engines' queues.
EMBEDDED_AT_ONCE = 8


def routes(answering: Answering) -> list[Route]:
    """Return the routes of embeddings."""

    async def embeddings(request: Request) -> Response:
        body = await parse(request, EmbeddingRequest)
        head = answering.head("embd", body.model)
        requests = body.embed_requests(head["id"], answering.adapter(body.model))
        deadline = answering.deadline()
        found: dict[int, Delta] = {}
        for start in range(0, len(requests), EMBEDDED_AT_ONCE):
            part = requests[start : start + EMBEDDED_AT_ONCE]
            async with aclosing(answering.deltas(part, deadline)) as deltas:
                async for index, delta in deltas:
                    found[start + index] = delta
        ordered = [found[index] for index in range(len(requests))]
        return JSONResponse(embeddings_of(ordered, body.model, body.encoding_format or "float"))

    return [Route("/v1/embeddings", embeddings, "POST")]
