"""An engine replica: requests of the ingress in, text out."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import EngineError, QueueFullError, RequestError, SamplingParams, TextEngine
from llamahome.engine.sampling.grammar import GrammarMask
from llamahome.logs import ABOUT
from llamahome.requests import CallFormat, EngineStats, Grammar
from serve.async_engine import AsyncEngine, EngineStoppedError
from serve.tokens import detokenized, from_token, once, scored_prompt, tokenized
from serve.wire import (
    Accepted,
    Delta,
    DetokenizeRequest,
    EmbedRequest,
    Failure,
    GenerateRequest,
    Origin,
    ReplicaStats,
    Reply,
    Request,
    ScoreRequest,
    TokenizeRequest,
)

logger = logging.getLogger(__name__)

STALL_S = 60.0
# An idle engine generates one token so often, to show that it can.
PROBE_AFTER_S = 10.0
# With prompt_logprobs it leaves no snapshot.
PROBE = SamplingParams(max_tokens=1, prompt_logprobs=0, ignore_eos=True)
GRAMMAR_TIMEOUT_S = 10.0


class Replica:
    """One engine, loaded on construction.

    Args:
        name: of this replica, in messages and stats.
        engine_factory: loads the engine.
        stall_s: seconds after which a step that has not ended is a hung engine.
        probe_after_s: seconds after which an idle engine has to show that it can generate.
    """

    def __init__(
        self,
        model: ModelConfig,
        policy: PolicyConfig,
        engine: EngineConfig,
        *,
        name: str = "replica",
        engine_factory: Callable[..., TextEngine] = TextEngine.load,
        stall_s: float = STALL_S,
        probe_after_s: float = PROBE_AFTER_S,
    ) -> None:
        self._name = name
        self._stall_s = stall_s
        self._probe_after_s = probe_after_s
        self._probe: asyncio.Task[None] | None = None
        self._engine = engine_factory(model, policy, engine)
        self._async_engine = AsyncEngine(self._engine)
        # One thread, since a tokenizer may not be set up by two at a time.
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        # Compiling a grammar takes up to a second; neither steps nor other prompts wait for it.
        self._compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._grammars_ready = False
        logger.info("replica %s serves %s", name, model.name)

    async def process_input(
        self, request: Request, origin: Origin | None = None
    ) -> AsyncGenerator[Reply, None]:
        """Yield the deltas of one input's answer, or the failure that ends it."""
        if origin is not None:
            ABOUT.set(origin.about)
        logger.debug("takes %s", request.request_id)
        name: str | None = self._name
        started = False
        try:
            self._check_progress()
            async with aclosing(await self._answer(request)) as deltas:
                started = self._async_engine.running
                retried = isinstance(request, GenerateRequest) and request.progress is not None
                if started and retried:
                    yield Accepted()
                async for delta in deltas:
                    yield delta if name is None else replace(delta, replica=name)
                    name = None
        except EngineError as error:
            failure = _failure(error, request, started)
            logger.debug("gives %s up: %s", request.request_id, failure.kind)
            yield failure

    async def _answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        encoding = self._encoding
        match request:
            case EmbedRequest():
                prompt = await encoding(self._tokens, request.prompt)
                return self._async_engine.embed(request.request_id, prompt, request.adapter)
            case TokenizeRequest():
                return once(await encoding(tokenized, self._engine, request))
            case DetokenizeRequest():
                return once(await encoding(detokenized, self._engine, request))
            case ScoreRequest():
                prompt, params, first = await encoding(scored_prompt, self._engine, request)
                scored = self._async_engine.generate(request.request_id, prompt, params)
                return from_token(scored, first)
        prompt, params = await encoding(self._prepared, request)
        grammar = None if params.grammar is None else await self._compile(params.grammar)
        deltas = self._async_engine.generate(
            request.request_id, prompt, params, grammar, request.progress
        )
        return deltas if request.tools is None else _formatted(deltas, self._engine.call_format)

    async def _encoding(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return the result of the tokenizer's work; its log lines are about this request."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, copy_context().run, work, *args)

    async def _compile(self, grammar: Grammar) -> GrammarMask:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(GRAMMAR_TIMEOUT_S):
                return await loop.run_in_executor(self._compiler, self._engine.compile, grammar)
        except TimeoutError:
            reason = f"it was not compiled within {GRAMMAR_TIMEOUT_S:g} s; send a simpler one"
            raise RequestError("grammar", None, reason) from None

    def _prepared(self, request: GenerateRequest) -> tuple[list[int], SamplingParams]:
        """Return token ids, and params with what only the tokenizer knows."""
        if request.messages is None:
            prompt, protected = self._tokens(request.prompt or []), 0
        else:
            prompt, protected = self._chat(request, request.messages)
        echo = None
        if request.echo:
            given = request.prompt
            echo = given if isinstance(given, str) else self._engine.decode(prompt)
        params = self._engine.with_defaults(request.params, request.left_out, len(prompt))
        params = replace(params, echo=echo, protected=protected)
        if request.tools is not None:
            params = self._engine.with_calls(params, request.tools)
        return prompt, params

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        return self._engine.encode(prompt) if isinstance(prompt, str) else prompt

    def _chat(
        self, request: GenerateRequest, messages: list[dict[str, Any]]
    ) -> tuple[list[int], int]:
        """Return the token ids, and how many of the first ones are never evicted."""
        tools = [] if request.tools is None else request.tools.offered
        options = request.template_options
        ids = self._engine.encode_chat(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            tools=tools,
            options=options,
        )
        return ids, self._engine.system_length(messages, ids, tools=tools, options=options)

    @property
    def policy(self) -> PolicyConfig:
        """The policy that the engine serves under."""
        return self._engine.policy

    def engine_stats(self) -> EngineStats:
        """Return the engine's figures as of its latest step."""
        return self._async_engine.stats()

    async def stats(self) -> ReplicaStats:
        return ReplicaStats(
            replica=self._name,
            running=self._async_engine.running,
            engine=self.engine_stats(),
            max_length=self._engine.max_length,
            cache=self._engine.cache_shape,
        )

    async def check_health(self) -> None:
        """Check that the engine computes; if it does not, Serve replaces the replica.

        The first call that finds the engine idle also prepares grammars: that takes half a second,
        which the first answers of a new replica need not wait for.

        An engine that has work must end its steps. One that is idle is given one token to generate
        now and then; this call does not wait for it, but later ones fail if it does not come.

        Raises:
            EngineError: when the engine has stopped, hangs or cannot generate.
        """
        self._check_progress()
        probe = self._probe
        if probe is not None and probe.done() and (error := probe.exception()) is not None:
            raise error
        if not self._grammars_ready and self._async_engine.idle_s > 0:
            self._grammars_ready = True
            self._compiler.submit(self._engine.prepare)
        if self._async_engine.idle_s > self._probe_after_s:
            self._probe = asyncio.create_task(self._generate_one())

    def _check_progress(self) -> None:
        if not self._async_engine.running:
            raise EngineStoppedError(f"the engine of {self._name} has stopped")
        if self._async_engine.stalled_s > self._stall_s:
            raise EngineStoppedError(
                f"the engine of {self._name} hangs: a step has not ended for {self._stall_s:g} s"
            )

    async def _generate_one(self) -> None:
        """Generate one token.

        Raises:
            AnswerError: when the engine cannot; other errors show elsewhere.
        """
        with suppress(QueueFullError, EngineStoppedError):
            answer = self._async_engine.generate(f"probe-{uuid.uuid4().hex}", [0], PROBE)
            async with aclosing(answer) as deltas:
                async for _ in deltas:
                    pass

    def close(self) -> None:
        self._async_engine.close()
        self._encoder.shutdown()
        self._compiler.shutdown()


async def _formatted(
    deltas: AsyncGenerator[Delta, None], form: CallFormat
) -> AsyncGenerator[Delta, None]:
    """Set the format of calls on the first delta, which the answer's reader needs."""
    first: CallFormat | None = form
    async with aclosing(deltas):
        async for delta in deltas:
            yield replace(delta, call_format=first)
            first = None


def _failure(error: EngineError, request: Request, started: bool) -> Failure:
    if isinstance(error, RequestError):
        field = _field(error, request)
        return Failure(kind="invalid", message=error.for_client(field), field=field)
    if isinstance(error, QueueFullError):
        return Failure(kind="full", message=str(error))
    if isinstance(error, EngineStoppedError):
        return Failure(kind="crashed" if started else "unavailable", message=str(error))
    return Failure(kind="failed", message=str(error))


def _field(error: RequestError, request: Request) -> str:
    """Return the client's name for the field that is wrong."""
    match request:
        case EmbedRequest():
            return "input" if error.field == "prompt" else error.field
        case ScoreRequest():
            return request.field if error.field == "prompt" else error.field
        case GenerateRequest():
            return _generation_field(error, request)
    return error.field


def _generation_field(error: RequestError, request: GenerateRequest) -> str:
    if error.field in ("prompt", "protected") and request.messages is not None:
        return "messages"
    if error.field != "grammar":
        return error.field
    if request.tools is not None:
        return "tools"
    return "grammar" if request.params.grammar is None else request.params.grammar.source
