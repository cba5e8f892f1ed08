"""A conversation of single texts over a WebSocket: one JSON message in, its answer out in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from llamahome.requests import RequestError
from serve.http.answering import Answering
from serve.http.bodies import checked
from serve.http.errors import ApiError, invalid_request, note_error
from serve.http.plain import NAMES, PlainBody, parts
from serve.http.renamed import renamed
from serve.wire import GenerateRequest

POLICY_VIOLATION, TOO_BIG = 1008, 1009


class Talk:
    """The messages of one WebSocket, answered one after the other.

    Args:
        request: makes the request for a replica; may raise ApiError or RequestError.
    """

    def __init__(
        self,
        answering: Answering,
        request: Callable[[PlainBody], GenerateRequest],
        socket: WebSocket,
    ) -> None:
        self._answering = answering
        self._request = request
        self._socket = socket

    async def run(self) -> None:
        """Answer texts until the client leaves, or sends none for `request_timeout_s`."""
        await self._socket.accept()
        try:
            while True:
                await self._answer(await self._received())
        except TimeoutError:
            await self._socket.close()
        except WebSocketDisconnect:
            return

    async def _received(self) -> str:
        settings = self._answering.settings
        async with asyncio.timeout(settings.request_timeout_s):
            text = await self._socket.receive_text()
        if len(text.encode(errors="replace")) > settings.max_body_bytes:
            reason = f"over {settings.max_body_bytes} bytes (serve.max_body_bytes)"
            await self._socket.close(TOO_BIG, reason)
            raise WebSocketDisconnect(TOO_BIG)
        return text

    async def _answer(self, text: str) -> None:
        """Send an answer; the client's leaving, or another text before its end, ends it."""
        sending = asyncio.create_task(self._send(text))
        coming = asyncio.create_task(self._socket.receive())
        try:
            await asyncio.wait({sending, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                if coming.result()["type"] != "websocket.disconnect":
                    await self._socket.close(POLICY_VIOLATION, "one text at a time")
                raise WebSocketDisconnect
            sending.result()
        finally:
            for task in (sending, coming):
                task.cancel()
            await asyncio.wait({sending, coming})

    async def _send(self, text: str) -> None:
        try:
            request = self._request(checked(PlainBody, text))
            deltas = self._answering.deltas([request], self._answering.deadline())
            async with aclosing(deltas):
                async for _, delta in deltas:
                    for part in parts(delta):
                        await self._socket.send_json(part)
        except (ApiError, RequestError) as error:
            await self._socket.send_json(_refusal(error))


def _refusal(error: ApiError | RequestError) -> dict[str, Any]:
    """Return an error as a message."""
    if isinstance(error, RequestError):
        error = invalid_request(error.for_client(error.field), error.field)
    refusal = renamed(error, NAMES)
    note_error(refusal)
    return refusal.body()
