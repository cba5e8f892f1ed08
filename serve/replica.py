"""An engine replica: requests of the ingress in, text out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from jinja2 import TemplateError

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import (
    EngineError,
    QueueFullError,
    RequestError,
    SamplingParams,
    TextEngine,
)
from serve.async_engine import AsyncEngine, EngineStoppedError, StepEngine
from serve.wire import (
    Delta,
    EmbedRequest,
    Failure,
    GenerateRequest,
    ReplicaStats,
    Reply,
    Request,
)

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

EngineFactory = Callable[[ModelConfig, PolicyConfig, EngineConfig], StepEngine]


class Replica:
    """One engine, loaded on construction."""

    def __init__(
        self,
        model: ModelConfig,
        policy: PolicyConfig,
        engine: EngineConfig,
        *,
        name: str = "replica",
        engine_factory: EngineFactory = TextEngine.load,
    ) -> None:
        self._name = name
        self._engine = engine_factory(model, policy, engine)
        self._async_engine = AsyncEngine(self._engine)
        # One thread, since a tokenizer may not be set up by two at a time.
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        logger.info("replica %s serves %s", name, model.name)

    async def process_input(self, request: Request) -> AsyncIterator[Reply]:
        """Yield the deltas of one input's answer, or the failure that ends it."""
        started = False
        try:
            async with aclosing(await self._answer(request)) as deltas:
                started = self._async_engine.running
                async for delta in deltas:
                    yield delta
        except EngineError as error:
            yield _failure(error, request, started)

    async def _answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        if isinstance(request, EmbedRequest):
            ids = await self._tokens(request.prompt)
            return self._async_engine.embed(request.request_id, ids, request.adapter)
        prompt, protected = await self._encode(request)
        params = await self._in_encoder(self._params, request, prompt, protected)
        return self._async_engine.generate(request.request_id, prompt, params)

    async def _encode(self, request: GenerateRequest) -> tuple[list[int], int]:
        """Return the token ids, and how many of the first ones are never evicted."""
        if request.messages is not None:
            try:
                return await self._in_encoder(self._chat, request.messages)
            except TemplateError as error:  # templates refuse orders of roles they do not know
                raise RequestError(
                    "messages", f"{len(request.messages)} messages", str(error)
                ) from error
        return await self._tokens(request.prompt or []), 0

    async def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await self._in_encoder(self._engine.encode, prompt)
        return prompt

    async def _in_encoder(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, partial(call, *args, **kwargs))

    def _chat(self, messages: list[dict[str, str]]) -> tuple[list[int], int]:
        return self._engine.encode_chat(messages), self._engine.system_length(messages)

    def _params(
        self, request: GenerateRequest, prompt: list[int], protected: int
    ) -> SamplingParams:
        """Return the request's params with what only the tokenizer knows; prepare the engine."""
        echo = self._prompt_text(request, prompt) if request.echo else None
        params = replace(request.params, echo=echo, protected=protected)
        self._engine.prepare(params)
        return params

    def _prompt_text(self, request: GenerateRequest, prompt: list[int]) -> str:
        return request.prompt if isinstance(request.prompt, str) else self._engine.decode(prompt)

    async def stats(self) -> ReplicaStats:
        return ReplicaStats(
            replica=self._name,
            running=self._async_engine.running,
            engine=self._async_engine.stats(),
        )

    async def check_health(self) -> None:
        """Raise EngineStoppedError if the engine has stopped; Serve then replaces the replica."""
        if not self._async_engine.running:
            raise EngineStoppedError(f"the engine of {self._name} has stopped")

    def close(self) -> None:
        self._async_engine.close()
        self._encoder.shutdown()


def _failure(error: EngineError, request: Request, started: bool) -> Failure:
    if isinstance(error, RequestError):
        return Failure(kind="invalid", message=str(error), field=_field(error, request))
    if isinstance(error, QueueFullError):
        return Failure(kind="full", message=str(error))
    return Failure(kind="failed" if started else "unavailable", message=str(error))


def _field(error: RequestError, request: Request) -> str:
    """Return the client's name for the field that is wrong."""
    if isinstance(request, EmbedRequest):
        return "input" if error.field == "prompt" else error.field
    if error.field in ("prompt", "protected") and request.messages is not None:
        return "messages"
    if error.field == "grammar" and request.params.grammar is not None:
        return request.params.grammar.source
    return error.field
