"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import Request, Response
from openai.types.chat import ChatCompletion

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.errors import ApiError
from serve.http.protocol import ChatRequest
from serve.http.responses import ChatFormat
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the routes of chats."""

    async def chat_completions(request: Request) -> Response:
        body = await parse(request, ChatRequest)
        if body.lens and not answering.settings.lens:
            raise ApiError(
                403,
                "lens: this endpoint does not show its cache (serve.lens); leave it out",
                param="lens",
                code="permission_denied",
            )
        return await answering.respond(body, ChatFormat(answering.head("chatcmpl", body.model)))

    return [Route("/v1/chat/completions", chat_completions, "POST", ChatRequest, ChatCompletion)]
