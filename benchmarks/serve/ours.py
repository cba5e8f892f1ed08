"""Our engine without HTTP: raw, and behind the application's ASGI face."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import ASGIApp, Message

from benchmarks.engine.load import Timeline, replay
from benchmarks.process import PeerError
from llamahome.config import ServeRoot
from llamahome.engine import Engine, TextEngine
from serve.catalog import served_name
from serve.http.api import build_app
from serve.ray.application import http_settings
from serve.ray.backend import delta_of
from serve.replica import Replica
from serve.wire import Delta, ReplicaStats, Request


class Raw:
    """The engine, tokens in and tokens out."""

    def __init__(self, root: ServeRoot) -> None:
        text = TextEngine.load(root.model, root.policy, root.engine)
        text.prepare()
        self._engine: Engine = text._engine

    async def at_once(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        return replay(self._engine, prompts, [0.0] * len(prompts), [answer] * len(prompts))

    async def one_by_one(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        lines: list[Timeline] = []
        for prompt in prompts:
            begin = lines[-1].tokens[-1] if lines else 0.0
            [own] = replay(self._engine, [prompt], [0.0], [answer])
            tokens = [begin + at for at in own.tokens]
            lines.append(Timeline(arrived=begin, tokens=tokens))
        return lines


class _OneReplica:
    """A backend that calls its replica itself."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        async with aclosing(self._replica.process_input(request)) as replies:
            async for reply in replies:
                yield delta_of(reply)

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self._replica.stats()]


class Application:
    """The whole application in this process, without Ray and without a socket."""

    def __init__(self, root: ServeRoot) -> None:
        self._replica = Replica(root.model, root.policy, root.engine)
        self._model = served_name(root)
        self._app: ASGIApp = build_app(_OneReplica(self._replica), http_settings(root))

    async def at_once(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        return list(await asyncio.gather(*(self._ask(prompt, answer) for prompt in prompts)))

    async def one_by_one(self, prompts: Sequence[list[int]], answer: int) -> list[Timeline]:
        return [await self._ask(prompt, answer) for prompt in prompts]

    async def _ask(self, prompt: list[int], answer: int) -> Timeline:
        line = Timeline(arrived=time.perf_counter())
        received: list[Message] = []

        async def send(message: Message) -> None:
            received.append(message)
            if b"data: {" in message.get("body", b""):
                line.tokens.append(time.perf_counter())

        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": answer,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        waiting: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()
            raise AssertionError

        await self._app(_scope(), receive, send)
        if received[0].get("status") != 200 or received[-1].get("more_body"):
            raise PeerError(f"no whole answer: {received[-1]!r}")
        return line

    def close(self) -> None:
        self._replica.close()


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
