"""POST /v1/completions."""

from __future__ import annotations

from fastapi import Request, Response
from openai.types import Completion

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.protocol import CompletionRequest
from serve.http.responses import CompletionFormat
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the routes of completions."""

    async def completions(request: Request) -> Response:
        body = await parse(request, CompletionRequest)
        return await answering.respond(body, CompletionFormat(answering.head("cmpl", body.model)))

    return [Route("/v1/completions", completions, "POST", CompletionRequest, Completion)]
