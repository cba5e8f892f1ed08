"""Requests in, tokens out: scheduler, runner and sampler put together. Synchronous, one thread."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.cache import open_snapshots
from llamahome.config import EngineConfig
from llamahome.engine.admission import Admission
from llamahome.engine.outputs import EngineStats, FinishReason, TokenDelta, usage_of
from llamahome.engine.prefixes import PrefixCache
from llamahome.engine.runners.build import build_runner
from llamahome.engine.runners.contract import Every, RowInput, StepOutput
from llamahome.engine.runners.threads import one_torch_thread
from llamahome.engine.sampling.grammar import GrammarMask
from llamahome.engine.sampling.sampler import NOT_FINITE, Choice, SamplingState
from llamahome.engine.scheduler import Batch, Request, Scheduler
from llamahome.engine.speculation import Speculation, verify
from llamahome.models import fingerprint
from llamahome.requests import RequestError, SamplingParams, Usage

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over slots of constant size.

    Args:
        model: a decoder; with LoRA adapters to choose from, PEFT's model of it.
        policy: which keys stay; a request may ask for another within what a slot holds.
        eos_token_ids: tokens that end an answer.

    Raises:
        ConfigError: for a runner, KV dtype or folder of snapshots that cannot be had.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        policy: Policy,
        config: EngineConfig,
        *,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        self.max_length = config.max_length
        self.vocab_size: int = model.config.vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self.adapters = list(model.peft_config) if isinstance(model, PeftModel) else []
        self._device = model.device
        self._runner = build_runner(model, policy, config)
        slots = self._runner.slots
        self._admission = Admission(slots, vocab_size=self.vocab_size, adapters=self.adapters)
        store = open_snapshots(config)
        # Every runner lays entries out in its own way, and rounds in its own.
        identity = "" if store is None else f"{self._runner.name} {fingerprint(model)}"
        self._prefixes = None if store is None else PrefixCache(store, slots, identity)
        self._scheduler = Scheduler(
            config.slots,
            max_queued=config.max_queued,
            max_queued_tokens=config.max_queued_tokens,
            prefill_tokens=config.prefill_tokens,
        )
        self._speculation = Speculation(self._runner, config.draft_tokens)
        self._sampling: dict[str, SamplingState] = {}
        self._pooled: dict[str, Tensor] = {}
        self._stats = EngineStats(
            slots=config.slots, kv_bytes=slots.nbytes, runner=self._runner.name
        )

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarMask | None = None,
    ) -> None:
        """Queue a request; `grammar` is what `params.grammar` compiles to.

        Raises:
            RequestError: for a prompt that is empty, too long or no list of known tokens, an id
                that is in use, or a policy, budget or adapter that cannot be had.
            QueueFullError: when too many wait.
        """
        self._queue(request_id, prompt, params)
        self._sampling[request_id] = SamplingState(
            params,
            prompt,
            eos_token_ids=self.eos_token_ids,
            vocab_size=self.vocab_size,
            device=self._device,
            grammar=grammar,
        )

    def submit_embedding(
        self, request_id: str, prompt: list[int], *, adapter: str | None = None
    ) -> None:
        """Queue a text to be embedded: the mean of its tokens' last hidden states, of length 1.

        Its one delta has `embedding`. Raises as `submit` does.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, adapter=adapter)
        self._queue(request_id, prompt, params)
        self._pooled[request_id] = torch.zeros(())

    def _queue(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        if self._scheduler.find(request_id) is not None:
            raise RequestError("request_id", request_id, "a request of this id is running")
        self._admission.check(prompt, params)
        self._scheduler.add(Request(request_id, list(prompt), len(prompt), params))

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> list[TokenDelta]:
        """A token for everyone who decodes, more if guesses were right, and chunks of the prompts
        that are being read. A request's deltas lie together."""
        with one_torch_thread():
            for request in self._scheduler.admit():
                self._admit(request)
        batch = self._scheduler.batch(self._runner.slots.room)
        self._stats.steps += 1
        if batch is None:
            return []
        guesses = self._speculation.guesses(batch)
        output = self._runner.forward(
            [
                self._row(request, count, guesses.get(row, []))
                for row, (request, count) in enumerate(
                    zip(batch.requests, batch.tokens, strict=True)
                )
            ]
        )
        with one_torch_thread():
            return self._take_in(batch, output, guesses)

    def _admit(self, request: Request) -> None:
        assert request.slot is not None
        params, sink = request.params, self._admission.sink(request.params)
        self._runner.slots.reset(
            request.slot, sink=sink, policy=self._admission.policy(params), budget=params.kv_budget
        )
        # Who wants something of every token of the prompt has to compute them all.
        if self._prefixes is not None and params.prompt_logprobs is None:
            request.restored = request.computed = self._prefixes.start(request, sink)

    def _take_in(
        self, batch: Batch, output: StepOutput, guesses: Mapping[int, list[int]]
    ) -> list[TokenDelta]:
        """Count what a step computed, and choose the next tokens where all are computed."""
        ready = []
        for row, (request, count) in enumerate(zip(batch.requests, batch.tokens, strict=True)):
            request.computed += count
            if row in output.every and row not in guesses:
                self._collect(request, output.every[row])
            if request.computed == len(request.tokens):
                ready.append(row)
            elif self._prefixes is not None:
                self._prefixes.note(request)
        return self._deltas(batch, output, ready, guesses)

    def _row(self, request: Request, count: int, guess: list[int]) -> RowInput:
        assert request.slot is not None
        every: Every = None
        if request.request_id in self._pooled:
            every = "hidden"
        elif guess or (request.params.prompt_logprobs is not None and request.generated == 0):
            every = "logits"
        return RowInput(
            slot=request.slot,
            tokens=request.tokens[request.computed : request.computed + count] + guess,
            adapter=request.params.adapter,
            every=every,
            drafted=bool(guess),
        )

    def _collect(self, request: Request, every: Tensor) -> None:
        """Logits, or hidden states, of a part of the prompt."""
        if request.request_id in self._pooled:
            self._pooled[request.request_id] = self._pooled[request.request_id] + every.sum(0).cpu()
            return
        found = self._sampling[request.request_id].prompt_logprobs
        assert found is not None
        found.add(every)

    def _deltas(
        self,
        batch: Batch,
        output: StepOutput,
        ready: list[int],
        guesses: Mapping[int, list[int]],
    ) -> list[TokenDelta]:
        deltas, answering = [], []
        for row in ready:
            request = batch.requests[row]
            if request.request_id in self._pooled:
                deltas.append(self._embed(request))
            elif request.params.max_tokens == 0:
                deltas.append(self._score(request, output.logits[row]))
            else:
                answering.append(row)
        if answering:
            requests = [batch.requests[row] for row in answering]
            states = [self._sampling[request.request_id] for request in requests]
            chosen = verify(output, answering, states, guesses)
            right = {row: len(own) - 1 for row, own in zip(answering, chosen, strict=True)}
            self._speculation.settle(batch, guesses, right)
            for request, state, choices in zip(requests, states, chosen, strict=True):
                deltas += self._take(request, state, choices)
        return deltas

    def _embed(self, request: Request) -> TokenDelta:
        mean = self._pooled[request.request_id] / request.prompt_length
        if not bool(torch.isfinite(mean).all()):
            return self._finish(request, Choice(error=NOT_FINITE), "error")
        delta = self._finish(request, Choice(), "length")
        return replace(delta, embedding=mean / mean.norm().clamp(min=1e-12))

    def _score(self, request: Request, logits: Tensor) -> TokenDelta:
        """The end of a request for the log-probabilities of its prompt alone."""
        if not bool(torch.isfinite(logits).all()):
            return self._finish(request, Choice(error=NOT_FINITE), "error")
        return self._finish(request, Choice(), "length")

    def _take(
        self, request: Request, state: SamplingState, choices: list[Choice]
    ) -> list[TokenDelta]:
        deltas = []
        for choice in choices[:-1]:
            self._append(request, choice)
            deltas.append(self._delta(request, choice))
        return [*deltas, self._take_last(request, state, choices[-1])]

    def _append(self, request: Request, choice: Choice) -> None:
        assert choice.token is not None
        request.tokens.append(choice.token)
        self._stats.generated_tokens += 1

    def _take_last(self, request: Request, state: SamplingState, choice: Choice) -> TokenDelta:
        if choice.token is None:
            logger.error("request %s failed: %s", request.request_id, choice.error)
            return self._finish(request, choice, "error")
        if choice.token in state.stop_token_ids:
            return self._finish(request, Choice(), "stop")
        self._append(request, choice)
        if state.finished:
            return self._finish(request, choice, "stop")
        if request.generated == request.params.max_tokens:
            return self._finish(request, choice, "length")
        return self._delta(request, choice)

    def _delta(self, request: Request, choice: Choice) -> TokenDelta:
        state = self._sampling.get(request.request_id)
        first = request.generated <= 1
        found = None if state is None else state.prompt_logprobs
        return TokenDelta(
            request_id=request.request_id,
            token=choice.token,
            logprob=choice.logprob,
            top_logprobs=choice.top_logprobs,
            prompt_logprobs=tuple(found.found) if first and found is not None else (),
            error=choice.error,
        )

    def _finish(self, request: Request, choice: Choice, reason: FinishReason) -> TokenDelta:
        delta, usage = self._delta(request, choice), usage_of(request, self._runner.slots)
        self._forget(request, keep=reason != "error")
        if reason == "error":
            self._stats.requests_failed += 1
        else:
            self._stats.requests_finished += 1
        return replace(delta, finish_reason=reason, usage=usage)

    def _forget(self, request: Request, *, keep: bool) -> None:
        usage = usage_of(request, self._runner.slots)
        self._stats.prompt_tokens += min(request.computed, request.prompt_length)
        self._stats.evicted_tokens += usage.evicted_tokens
        if self._prefixes is not None:
            self._prefixes.end(request, keep=keep)
        if not keep and request.slot is not None:
            self._runner.slots.wipe(request.slot)
        self._scheduler.remove(request)
        self._sampling.pop(request.request_id, None)
        self._speculation.forget(request)
        self._pooled.pop(request.request_id, None)

    def stop(self, request_id: str) -> Usage:
        """End a running request as finished, at a stop text say, and free its slot."""
        usage = self._end(request_id, keep=True)
        self._stats.requests_finished += 1
        return usage

    def fail(self, request_id: str) -> Usage:
        """End a running request that cannot go on, and free its slot."""
        usage = self._end(request_id, keep=False)
        self._stats.requests_failed += 1
        return usage

    def _end(self, request_id: str, *, keep: bool) -> Usage:
        request = self._scheduler.find(request_id)
        if request is None:
            raise KeyError(f"no request {request_id!r} is running")
        usage = usage_of(request, self._runner.slots)
        self._forget(request, keep=keep)
        return usage

    def cancel(self, request_id: str) -> None:
        """Drop a request, waiting or running; its slot is free at once. Unknown ids are ignored."""
        request = self._scheduler.find(request_id)
        if request is not None:
            self._forget(request, keep=False)
            self._stats.requests_cancelled += 1

    def close(self) -> None:
        """Write snapshots to their folder, if there is one, for the next start."""
        if self._prefixes is not None:
            self._prefixes.flush()

    def stats(self) -> EngineStats:
        """The counters, with what is in use this moment."""
        self._stats.slots_used = len(self._scheduler.running)
        self._stats.queued = len(self._scheduler.waiting)
        self._stats.drafted_tokens = self._speculation.drafted
        self._stats.accepted_tokens = self._speculation.accepted
        if self._prefixes is not None:
            self._stats.note_prefixes(self._prefixes.stats())
        return self._stats
