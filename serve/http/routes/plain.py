"""POST /api/v1/process, /api/v1/stream and the WebSocket /api/v1/ws: text in, text out."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from llamahome.requests import RequestError
from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.errors import ApiError, invalid_body, invalid_request
from serve.http.plain import NAMES, PlainBody
from serve.http.renamed import fields_renamed, renamed
from serve.http.routes.route import Route
from serve.wire import Delta, GenerateRequest

POLICY_VIOLATION, TOO_BIG = 1008, 1009


def routes(answering: Answering) -> list[Route]:
    """Return the plain routes."""

    def asked(body: PlainBody) -> GenerateRequest:
        model_id = body.model or answering.settings.model_id
        answering.check_model(model_id)
        with fields_renamed(NAMES):
            chat = body.chat(model_id)
            adapter = answering.adapter(model_id)
            return chat.generate_requests(f"text-{uuid.uuid4().hex}", adapter)[0]

    async def process(request: Request) -> Response:
        body = await parse(request, PlainBody)
        with fields_renamed(NAMES):
            answer = await answering.whole(asked(body))
        return JSONResponse({"text": answer.text, **_ending(answer)})

    async def stream(request: Request) -> Response:
        body = await parse(request, PlainBody)
        with fields_renamed(NAMES):
            return await answering.stream(asked(body), _events)

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await _answer(socket, await _received(socket))
        except (WebSocketDisconnect, TimeoutError):
            return

    async def _received(socket: WebSocket) -> PlainBody | ApiError:
        async with asyncio.timeout(answering.settings.request_timeout_s):
            text = await socket.receive_text()
        limit = answering.settings.max_body_bytes
        if len(text.encode(errors="replace")) > limit:
            await socket.close(TOO_BIG, f"over {limit} bytes (serve.max_body_bytes)")
            raise WebSocketDisconnect(TOO_BIG)
        try:
            return PlainBody.model_validate_json(text)
        except ValidationError as error:
            return invalid_body(error)

    async def _answer(socket: WebSocket, body: PlainBody | ApiError) -> None:
        """Send an answer; the client's leaving, or another text before its end, ends it."""
        if isinstance(body, ApiError):
            await socket.send_json(body.body())
            return
        sending = asyncio.create_task(_send(socket, body))
        coming = asyncio.create_task(socket.receive())
        try:
            await asyncio.wait({sending, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                if coming.result()["type"] != "websocket.disconnect":
                    await socket.close(POLICY_VIOLATION, "one text at a time")
                raise WebSocketDisconnect
            sending.result()
        finally:
            await _ended(sending)
            await _ended(coming)

    async def _send(socket: WebSocket, body: PlainBody) -> None:
        try:
            deltas = answering.deltas([asked(body)], answering.deadline())
            async with aclosing(deltas):
                async for _, delta in deltas:
                    for part in _parts(delta):
                        await socket.send_json(part)
        except RequestError as error:
            refusal = invalid_request(str(error), error.field)
            await socket.send_json(renamed(refusal, NAMES).body())
        except ApiError as error:
            await socket.send_json(renamed(error, NAMES).body())

    return [
        Route("/api/v1/process", process, "POST", PlainBody),
        Route("/api/v1/stream", stream, "POST", PlainBody),
        Route("/api/v1/ws", talk, "WEBSOCKET"),
    ]


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _events(deltas: AsyncGenerator[Delta, None]) -> AsyncIterator[str]:
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                for part in _parts(delta):
                    yield f"data: {json.dumps(part)}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(renamed(error, NAMES).body())}\n\n"


def _parts(delta: Delta) -> list[dict[str, Any]]:
    """Return the messages of one delta: its text, and on the last how the answer ended."""
    text = [{"text": delta.text}] if delta.text else []
    return [*text, *([_ending(delta)] if delta.finish_reason is not None else [])]


def _ending(answer: Delta) -> dict[str, Any]:
    usage = answer.usage
    return {
        "finish_reason": answer.finish_reason,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
    }
