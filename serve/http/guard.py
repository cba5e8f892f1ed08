"""The guard in front of FastAPI: checks the key, its limits and the body's, and disconnects.

Pure ASGI. Ray Serve's proxy does none of these for sure: a client's header
(x-request-disconnect-disabled) turns its own watch for disconnects off.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import KW_ONLY, dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamahome.keys import Key, Keyring
from serve.http.checked import limit_reached
from serve.http.errors import ApiError, refuse
from serve.security.call import CALL
from serve.security.limits import Limiter, LocalLimiter

BODY_TIMEOUT_S = 30.0
OPEN_PATHS = ("/health", "/ping")
PAGE = ("/", "/page")  # files, of which the page asks for a key
# And what is below them.
ADMIN_PATHS = ("/metrics", "/admin", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")


@dataclass(frozen=True)
class Guard:
    """A gate that passes a request on to `app` with its body read, or answers 4xx.

    Attributes:
        app: the application behind the gate.
        keys: keys that open it; None asks for no key.
        limiter: the buckets of all keys.
        max_body_bytes: larger bodies are refused, by Content-Length before they are read.
        body_timeout_s: seconds in which a body must arrive.
    """

    app: ASGIApp
    _: KW_ONLY
    keys: Keyring | None
    max_body_bytes: int
    limiter: Limiter = field(default_factory=LocalLimiter)
    body_timeout_s: float = BODY_TIMEOUT_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            await self._admit(scope)
            if scope["type"] == "websocket":
                await self.app(scope, receive, send)
                return
            body = await self._read_body(scope, receive)
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        if body is not None:
            await self._until_disconnect(scope, body, receive, send)

    async def _admit(self, scope: Scope) -> None:
        """Find the sender's key, and count the request against its limit."""
        if self.keys is None or scope["path"] in OPEN_PATHS or _is_page(scope):
            return
        secret = given_key(Headers(scope=scope))
        key = None if secret is None else self.keys.find(secret, time.time())
        if key is None:
            raise ApiError(401, "missing or wrong API key", code="invalid_api_key")
        call = CALL.get()
        if call is not None:
            call.key = key
        if not key.admin and _is_below(scope["path"], ADMIN_PATHS):
            raise ApiError(
                403, f"{scope['path']} is for admins' keys only", code="permission_denied"
            )
        await self._count(key)

    async def _count(self, key: Key) -> None:
        if key.requests_per_minute is None:
            return
        taken = await self.limiter.take(key.id, "requests", key.requests_per_minute, 1)
        call = CALL.get()
        if call is not None:
            call.rates.update(taken.rates("requests"))
        if not taken.ok:
            raise limit_reached(taken, "requests")

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
                call = CALL.get()
                if call is not None:
                    call.left = True
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


async def _disconnect(receive: Receive) -> Message:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message


def _is_page(scope: Scope) -> bool:
    root, files = PAGE
    reads = scope.get("method") in ("GET", "HEAD")
    return reads and (scope["path"] == root or _is_below(scope["path"], (files,)))


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
