"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.anthropic.body import NAMES, CountBody, MessagesBody
from serve.http.anthropic.form import MessageAnswer, events, message
from serve.http.bodies import parse
from serve.http.errors import ApiError
from serve.http.renamed import fields_renamed
from serve.http.routes.route import Route


class Count(TypedDict):
    """The number of a prompt's tokens."""

    input_tokens: int


def routes(answering: Answering) -> list[Route]:
    """Return the routes of Anthropic's API."""

    async def messages(request: Request) -> Response:
        body = await parse(request, MessagesBody)
        answering.check_model(body.model)
        request_id = f"msg_{uuid.uuid4().hex}"
        with fields_renamed(NAMES):
            asked = body.wire_request(request_id, answering.adapter(body.model))
            if body.stream:
                return await answering.stream(asked, partial(events, request_id, body.model))
            return JSONResponse(message(request_id, body.model, await answering.whole(asked)))

    async def count_tokens(request: Request) -> Response:
        body = await parse(request, CountBody)
        answering.check_model(body.model)
        asked = body.wire_request(f"count_{uuid.uuid4().hex}")
        answer = await answering.whole(replace(asked, adapter=answering.adapter(body.model)))
        if answer.tokenized is None:
            raise ApiError(500, "the engine replica failed", code="engine")
        return JSONResponse(Count(input_tokens=len(answer.tokenized.ids)))

    return [
        Route("/v1/messages", messages, "POST", MessagesBody, MessageAnswer),
        Route("/v1/messages/count_tokens", count_tokens, "POST", CountBody, Count),
    ]
