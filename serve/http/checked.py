"""The rules of a key, at the one place that every request for the engine passes."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from llamahome.keys import Key
from serve.http.errors import ApiError, no_model
from serve.security.call import CALL, Call
from serve.security.limits import Kind, Limiter, Taken
from serve.wire import (
    Delta,
    EmbedRequest,
    GenerateRequest,
    ReplicaStats,
    Request,
    ScoreRequest,
)

# English text has about four characters to a token. It is settled by the tokens counted.
CHARACTERS_PER_TOKEN = 4


class _Backend(Protocol):
    def stream(self, request: Request) -> AsyncGenerator[Delta, None]: ...

    async def replicas(self) -> Sequence[ReplicaStats]: ...


class CheckedBackend:
    """A backend that computes only what the key of the current request allows.

    Endpoints need not think of it, so none can forget to.
    """

    def __init__(self, backend: _Backend, limiter: Limiter, model_id: str) -> None:
        self._backend = backend
        self._limiter = limiter
        self._model_id = model_id

    async def replicas(self) -> Sequence[ReplicaStats]:
        return await self._backend.replicas()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Yield the answer, and count its tokens for limits and the audit log.

        Raises:
            ApiError: 404 for a model that the key may not use, 403 for a priority ahead of others,
                429 for a limit that is reached, and what the backend raises.
        """
        call = CALL.get() or Call(request_id=request.request_id)
        call.model = model_of(request, self._model_id)
        if call.key is not None:
            _check(request, call.key, call.model)
        reserved = await self._reserve(request, call)
        spent = 0
        try:
            async with aclosing(self._backend.stream(request)) as deltas:
                async for delta in deltas:
                    call.note(delta)
                    # Until the engine says how long the prompt is, its length is estimated.
                    spent = (spent or prompt_estimate(request)) + delta.token_count
                    if delta.usage is not None:
                        spent = delta.usage.prompt_tokens + delta.usage.completion_tokens
                    yield delta
        finally:
            self._settle(call.key, reserved - spent)

    async def _reserve(self, request: Request, call: Call) -> int:
        """Take the tokens that a request may use, as far as it says."""
        key = call.key
        if key is None or key.tokens_per_minute is None:
            return 0
        cost = estimate(request)
        if cost > key.tokens_per_minute:
            raise ApiError(
                400,
                f"max_tokens: this request may take {cost} tokens, and its key has "
                f"{key.tokens_per_minute} a minute; ask for fewer, or send a shorter prompt",
                param="max_tokens",
                code="invalid_value",
            )
        taken = await self._limiter.take(key.id, "tokens", key.tokens_per_minute, cost)
        call.rates.update(taken.rates("tokens"))
        if not taken.ok:
            raise limit_reached(taken, "tokens")
        return cost

    def _settle(self, key: Key | None, unused: int) -> None:
        if key is not None and key.tokens_per_minute is not None and unused:
            self._limiter.give(key.id, "tokens", key.tokens_per_minute, unused)


def model_of(request: Request, model_id: str) -> str:
    """Return the name of the model that answers: of an adapter, or of the model itself."""
    match request:
        case GenerateRequest():
            return request.params.adapter or model_id
        case EmbedRequest() | ScoreRequest():
            return request.adapter or model_id
    return model_id  # the tokenizer is everyone's


def estimate(request: Request) -> int:
    """Return how many tokens a request asks for: of its prompt, by its length, and its answer.

    A request that names no `max_tokens` has its answer counted afterwards.
    """
    answer = request.params.max_tokens if isinstance(request, GenerateRequest) else 0
    return prompt_estimate(request) + (answer or 0)


def prompt_estimate(request: Request) -> int:
    """Return about how many tokens the engine reads; a tokenizer alone needs no engine."""
    match request:
        case GenerateRequest():
            return _size(request.prompt if request.messages is None else request.messages)
        case EmbedRequest():
            return _size(request.prompt)
        case ScoreRequest():
            return _size(request.context + request.text)
    return 0


def _size(prompt: object) -> int:
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    return math.ceil(len(str(prompt)) / CHARACTERS_PER_TOKEN)


def _check(request: Request, key: Key, model: str) -> None:
    if not key.may_use(model):
        raise no_model(model, key.models or ())
    priority = request.params.priority if isinstance(request, GenerateRequest) else 0
    if priority < 0 and not key.admin:
        raise ApiError(
            403,
            f"priority={priority}: only an admin's key may go ahead of others; send 0 or more",
            param="priority",
            code="permission_denied",
        )


def limit_reached(taken: Taken, kind: Kind) -> ApiError:
    seconds = max(1, math.ceil(taken.wait_s))
    return ApiError(
        429,
        f"this key's limit of {taken.limit} {kind} a minute is reached; try again in {seconds} s",
        code="rate_limit_exceeded",
        retry_after_s=seconds,
    )
