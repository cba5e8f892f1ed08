"""POST /api/v1/process, /api/v1/stream and the WebSocket /api/v1/ws: text in, text out."""

from __future__ import annotations

import uuid

from fastapi import Request, Response, WebSocket
from fastapi.responses import JSONResponse

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.plain import NAMES, PlainAnswer, PlainBody, ending, events
from serve.http.renamed import fields_renamed
from serve.http.routes.route import WEBSOCKET, Route
from serve.http.talk import Talk
from serve.wire import GenerateRequest


def routes(answering: Answering) -> list[Route]:
    """Return the plain routes."""

    def asked(body: PlainBody) -> GenerateRequest:
        model_id = body.model or answering.settings.model_id
        answering.check_model(model_id)
        chat = body.chat(model_id)
        adapter = answering.adapter(model_id)
        return chat.generate_requests(f"text-{uuid.uuid4().hex}", adapter)[0]

    async def process(request: Request) -> Response:
        body = await parse(request, PlainBody)
        with fields_renamed(NAMES):
            answer = await answering.whole(asked(body))
        return JSONResponse(PlainAnswer(text=answer.text, **ending(answer)))

    async def stream(request: Request) -> Response:
        body = await parse(request, PlainBody)
        with fields_renamed(NAMES):
            return await answering.stream(asked(body), events)

    async def talk(socket: WebSocket) -> None:
        await Talk(answering, asked, socket).run()

    return [
        Route("/api/v1/process", process, "POST", PlainBody, PlainAnswer),
        Route("/api/v1/stream", stream, "POST", PlainBody),
        Route("/api/v1/ws", talk, WEBSOCKET),
    ]
