"""The guard in front of FastAPI: checks the key and the body's limits, and notices disconnects.

Pure ASGI. Ray Serve's proxy does none of these for sure: a client's header
(x-request-disconnect-disabled) turns its own watch for disconnects off.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import KW_ONLY, dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import ApiError

BODY_TIMEOUT_S = 30.0
OPEN_PATHS = ("/health", "/ping")


def key_digest(api_key: str) -> bytes:
    """Return the SHA-256 of a key: the ingress can compare it, but not leak the key."""
    return hashlib.sha256(api_key.encode()).digest()


@dataclass(frozen=True)
class Guard:
    """A gate that passes a request on to `app` with its body read, or answers 401, 408 or 413.

    Attributes:
        app: the application behind the gate.
        key: SHA-256 of the API key; None asks for no key.
        max_body_bytes: larger bodies are refused, by Content-Length before they are read.
        body_timeout_s: seconds in which a body must arrive.
    """

    app: ASGIApp
    _: KW_ONLY
    key: bytes | None
    max_body_bytes: int
    body_timeout_s: float = BODY_TIMEOUT_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            if scope["type"] == "websocket":
                _check_origin(scope)
                await self.app(scope, receive, send)
                return
            body = await self._read_body(scope, receive)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        if body is not None:
            await self._until_disconnect(scope, body, receive, send)

    def _check_key(self, scope: Scope) -> None:
        if self.key is None or scope["path"] in OPEN_PATHS:
            return
        key = given_key(Headers(scope=scope))
        if key is None or not hmac.compare_digest(key_digest(key), self.key):
            raise ApiError(401, "missing or wrong API key", code="invalid_api_key")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None when the client left before it was complete."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self.body_timeout_s:g} s", code="timeout"
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body exceeds {self.max_body_bytes} bytes (serve.max_body_bytes)",
            code="body_too_large",
        )

    async def _until_disconnect(
        self, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        """Run the application, and cancel it as soon as the client is gone."""
        gone = asyncio.create_task(_disconnect(receive))
        answer = asyncio.create_task(self._answer(scope, body, gone, send))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
            await asyncio.wait({gone, answer})
        if not answer.cancelled():
            answer.result()

    async def _answer(
        self, scope: Scope, body: bytes, gone: asyncio.Task[Message], send: Send
    ) -> None:
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await asyncio.shield(gone)

        await self.app(scope, replay, send)


def given_key(headers: Headers) -> str | None:
    """Return the API key that a request carries: OpenAI's bearer token, or Anthropic's header."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else headers.get("x-api-key")


def _check_origin(scope: Scope) -> None:
    """Keep pages of other sites out: browsers let any page open a WebSocket to any host."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise ApiError(403, "pages of this origin may not use the endpoint", param="origin")


async def _disconnect(receive: Receive) -> Message:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message
