"""A client that costs little, since it shares the cores with the server that it measures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from benchmarks.engine.load import Timeline
from benchmarks.process import PeerError

PATIENCE_S = 300.0


class _Answer(asyncio.Protocol):
    """One connection with one request: the time of every chunk, and all bytes for later."""

    def __init__(self, request: bytes, line: Timeline, ended: asyncio.Future[None]) -> None:
        self._request = request
        self._line = line
        self._ended = ended
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._line.arrived = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if b"data: {" in data:
            self._line.tokens.append(time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class HttpClient:
    """Streams of completions from one server.

    Args:
        url: of the server.
        model: as it names the model.
        fields: of the body, besides those that every server gets.
    """

    def __init__(self, url: str, model: str, **fields: Any) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._model = model
        self._fields = fields

    async def at_once(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        return list(await asyncio.gather(*(self._ask(prompt, answer) for prompt in prompts)))

    async def one_by_one(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        return [await self._ask(prompt, answer) for prompt in prompts]

    async def _ask(self, prompt: list[int], answer: int) -> Timeline:
        """Return when the chunks of one answer came.

        Raises:
            PeerError: for another status than 200, a cut stream, or another length than `answer`.
        """
        loop = asyncio.get_running_loop()
        line = Timeline(arrived=0.0)
        ended: asyncio.Future[None] = loop.create_future()
        request = self._request(prompt, answer)
        _, own = await loop.create_connection(
            lambda: _Answer(request, line, ended), self._host, self._port
        )
        async with asyncio.timeout(PATIENCE_S):
            await ended
        check(bytes(own.received), answer)
        return line

    def _request(self, prompt: list[int], answer: int) -> bytes:
        body = json.dumps(
            {
                "model": self._model,
                "prompt": prompt,
                "max_tokens": answer,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._fields,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def check(received: bytes, answer: int) -> None:
    """Raise PeerError unless this is a whole stream of `answer` tokens."""
    if b" 200 " not in received[:16] or b"data: [DONE]" not in received:
        raise PeerError(f"no whole answer: {received[-300:].decode(errors='replace')!r}")
    counted = f'"completion_tokens":{answer},'.encode()
    if counted not in received.replace(b" ", b"").replace(b"}", b","):
        raise PeerError(f"not {answer} tokens: {received[-600:].decode(errors='replace')!r}")
