"""POST /v1/embeddings."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.protocol import EmbeddingRequest
from serve.http.responses import EmbeddingList, embeddings_of
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the routes of embeddings."""

    async def embeddings(request: Request) -> Response:
        body = await parse(request, EmbeddingRequest)
        head = answering.head("embd", body.model)
        requests = body.embed_requests(head["id"], answering.adapter(body.model))
        answers = await answering.each(requests)
        return JSONResponse(embeddings_of(answers, body.model, body.encoding_format or "float"))

    return [Route("/v1/embeddings", embeddings, "POST", EmbeddingRequest, EmbeddingList)]
