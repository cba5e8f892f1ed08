"""Requests in, tokens out: scheduler, runner and sampler put together. Synchronous, one thread."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.engine.grammar import GrammarMask
from llamahome.engine.logprobs import Logprob, TopLogprobs
from llamahome.engine.params import RequestError, SamplingParams, Usage
from llamahome.engine.runner import Runner
from llamahome.engine.sampler import Choice, SamplingState, choose
from llamahome.engine.scheduler import Batch, Request, Scheduler

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class TokenDelta:
    """What one step gave one request. `finish_reason` and `usage` are set on its last.

    `logprob` and `top_logprobs`, the likeliest first, are there when `params.logprobs` is, and on
    the first delta `prompt_logprobs` when `params.prompt_logprobs` is.
    """

    request_id: str
    token: int | None
    logprob: float | None = None
    top_logprobs: TopLogprobs = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None


@dataclass(kw_only=True)
class EngineStats:
    """Counters since the start, and what is in use now. Bytes are as allocated."""

    slots: int
    kv_bytes: int
    slots_used: int = 0
    queued: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    evicted_tokens: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0


class Engine:
    """Continuous batching over slots of constant size."""

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        config: EngineConfig,
        *,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        self.max_length = config.max_length
        self.vocab_size: int = model.config.vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self._runner = Runner(model, policy, num_slots=config.slots, max_length=self.max_length)
        self._scheduler = Scheduler(
            config.slots,
            max_queued=config.max_queued,
            max_queued_tokens=config.max_queued_tokens,
            prefill_tokens=config.prefill_tokens,
        )
        self._device = model.device
        self._sampling: dict[str, SamplingState] = {}
        self._stats = EngineStats(slots=config.slots, kv_bytes=self._runner.slots.nbytes)

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarMask | None = None,
    ) -> None:
        """Queue a request; `grammar` is what `params.grammar` compiles to.

        Raises:
            RequestError: for a prompt that is empty, too long or no list of known tokens, or an id
                that is in use.
            QueueFullError: when too many wait.
        """
        self._check(request_id, prompt, params)
        self._scheduler.add(Request(request_id, list(prompt), len(prompt), params))
        self._sampling[request_id] = SamplingState(
            params,
            prompt,
            eos_token_ids=self.eos_token_ids,
            vocab_size=self.vocab_size,
            device=self._device,
            grammar=grammar,
        )

    def _check(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        if self._scheduler.find(request_id) is not None:
            raise RequestError("request_id", request_id, "a request of this id is running")
        if not prompt:
            raise RequestError("prompt", "", "it must hold at least one token")
        for field, ids in (
            ("prompt", prompt),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            unknown = next((t for t in ids if not 0 <= t < self.vocab_size), None)
            if unknown is not None:
                raise RequestError(field, unknown, f"token ids lie in 0..{self.vocab_size - 1}")
        if len(prompt) >= self.max_length:
            raise RequestError(
                "prompt",
                f"{len(prompt)} tokens",
                f"the context holds {self.max_length}, answer included; send a shorter prompt",
            )
        if len(prompt) + params.max_tokens > self.max_length:
            raise RequestError(
                "max_tokens",
                params.max_tokens,
                f"the prompt's {len(prompt)} tokens and max_tokens={params.max_tokens} exceed the "
                f"context of {self.max_length}; ask for at most "
                f"{self.max_length - len(prompt)}",
            )
        limit = self._runner.slots.max_sink
        if limit is not None and params.protected > limit:
            raise RequestError(
                "protected",
                f"{params.protected} tokens",
                f"a system prompt that is never evicted must not exceed {limit} tokens, what the "
                "smallest head holds beside the recent ones; shorten it, raise policy.budget or "
                "set engine.protect_system=false",
            )

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> list[TokenDelta]:
        """A token for everyone who decodes, and chunks of the prompts that are being read."""
        for request in self._scheduler.admit():
            assert request.slot is not None
            self._runner.slots.reset(request.slot, sink=self._sink(request.params))
        batch = self._scheduler.batch(self._runner.slots.room)
        self._stats.steps += 1
        return [] if batch is None else self._run(batch)

    def _sink(self, params: SamplingParams) -> int:
        return max(self._runner.slots.policy.config.sink, params.protected)

    def _run(self, batch: Batch) -> list[TokenDelta]:
        rows = [r.slot for r in batch.requests if r.slot is not None]
        tokens = [
            request.tokens[request.computed : request.computed + count]
            for request, count in zip(batch.requests, batch.tokens, strict=True)
        ]
        logits = self._runner.forward(rows, tokens)
        ready = []
        for row, (request, count) in enumerate(zip(batch.requests, batch.tokens, strict=True)):
            request.computed += count
            if request.computed == len(request.tokens):
                ready.append(row)
        if not ready:
            return []
        requests = [batch.requests[row] for row in ready]
        states = [self._sampling[request.request_id] for request in requests]
        choices = choose(logits if len(ready) == len(logits) else logits[ready], states)
        return [self._take(*taken) for taken in zip(requests, states, choices, strict=True)]

    def _take(self, request: Request, state: SamplingState, choice: Choice) -> TokenDelta:
        token = choice.token
        if token is None:
            logger.error("request %s failed: %s", request.request_id, choice.error)
            return self._finish(request, choice, "error")
        if token in state.stop_token_ids:
            return self._finish(request, Choice(), "stop")
        request.tokens.append(token)
        state.advance(token)
        self._stats.generated_tokens += 1
        if state.finished:
            return self._finish(request, choice, "stop")
        if request.generated == request.params.max_tokens:
            return self._finish(request, choice, "length")
        return _delta(request, choice)

    def _finish(self, request: Request, choice: Choice, reason: FinishReason) -> TokenDelta:
        usage = self.usage(request)
        self._forget(request)
        if reason == "error":
            self._stats.requests_failed += 1
        else:
            self._stats.requests_finished += 1
        return replace(_delta(request, choice), finish_reason=reason, usage=usage)

    def usage(self, request: Request) -> Usage:
        slots = self._runner.slots
        held = 0 if request.slot is None else slots.held(request.slot)
        return Usage(
            prompt_tokens=request.prompt_length,
            completion_tokens=request.generated,
            kept_tokens=held,
            evicted_tokens=request.computed - held,
            kv_bytes=slots.slot_nbytes,
            kv_bytes_dense=slots.dense_nbytes(len(request.tokens)),
        )

    def _forget(self, request: Request) -> None:
        usage = self.usage(request)
        self._stats.prompt_tokens += min(request.computed, request.prompt_length)
        self._stats.evicted_tokens += usage.evicted_tokens
        self._scheduler.remove(request)
        del self._sampling[request.request_id]

    def stop(self, request_id: str) -> Usage:
        """End a running request as finished, at a stop text say, and free its slot."""
        usage = self._end(request_id)
        self._stats.requests_finished += 1
        return usage

    def fail(self, request_id: str) -> Usage:
        """End a running request that cannot go on, and free its slot."""
        usage = self._end(request_id)
        self._stats.requests_failed += 1
        return usage

    def _end(self, request_id: str) -> Usage:
        request = self._scheduler.find(request_id)
        if request is None:
            raise KeyError(f"no request {request_id!r} is running")
        usage = self.usage(request)
        self._forget(request)
        return usage

    def cancel(self, request_id: str) -> None:
        """Drop a request, waiting or running; its slot is free at once. Unknown ids are ignored."""
        request = self._scheduler.find(request_id)
        if request is not None:
            self._forget(request)
            self._stats.requests_cancelled += 1

    def stats(self) -> EngineStats:
        """The counters, with what is in use this moment."""
        self._stats.slots_used = len(self._scheduler.running)
        self._stats.queued = len(self._scheduler.waiting)
        return self._stats


def _delta(request: Request, choice: Choice) -> TokenDelta:
    return TokenDelta(
        request_id=request.request_id,
        token=choice.token,
        logprob=choice.logprob,
        top_logprobs=choice.top_logprobs,
        error=choice.error,
    )
