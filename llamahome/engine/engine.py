"""Requests in, tokens out: scheduler, runner and sampler put together. Synchronous, one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.engine.admission import Admission
from llamahome.engine.lens import FramePace, Lens
from llamahome.engine.pace import Pace
from llamahome.engine.prefixes import PrefixCache
from llamahome.engine.request import TokenDelta, embedding, generation
from llamahome.engine.runners.build import build_runner
from llamahome.engine.runners.contract import StepOutput
from llamahome.engine.runners.native import one_torch_thread
from llamahome.engine.sampling.grammar import GrammarMask
from llamahome.engine.sampling.sampler import SamplingState
from llamahome.engine.scheduler import Batch, Scheduler
from llamahome.engine.speculation import Speculation
from llamahome.lens import CacheShape, LensFrame
from llamahome.models.decoder import Decoder, is_adapted
from llamahome.requests import EngineStats, SamplingParams, Usage

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Engine:
    """Continuous batching over slots of constant size.

    Args:
        model: a decoder, or its weights alone where the C++ kernels compute it; with LoRA adapters
            to choose from, PEFT's model of it.
        policy: which keys stay; a request may ask for another within what a slot holds.
        eos_token_ids: tokens that end an answer.

    Raises:
        ConfigError: for a runner, KV dtype or snapshot folder that cannot be had.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | Decoder,
        policy: Policy,
        config: EngineConfig,
        *,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        self.max_length = config.max_length
        self.vocab_size: int = model.config.vocab_size
        self._runner = build_runner(model, policy, config)
        self._slots = self._runner.slots
        adapters = list(model.peft_config) if is_adapted(model) else []
        self._admission = Admission(self._slots, vocab_size=self.vocab_size, adapters=adapters)
        self._prefixes = PrefixCache(config, self._runner, model)
        self._scheduler = Scheduler(
            config.slots,
            max_queued=config.max_queued,
            max_queued_tokens=config.max_queued_tokens,
            prefill_tokens=config.prefill_tokens,
            chunk=self._slots.policy.interval,
            pace=Pace(config.slowdown),
        )
        self._frame_pace = FramePace()
        self._speculation = Speculation(self._runner, config.draft_tokens)
        self._sampling = partial(
            SamplingState,
            eos_token_ids=frozenset(eos_token_ids),
            vocab_size=self.vocab_size,
            device=model.device,
        )
        self._counters = EngineStats(
            slots=config.slots, kv_bytes=self._slots.nbytes, runner=self._runner.name
        )

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarMask | None = None,
        *,
        answered: Sequence[int] = (),
    ) -> None:
        """Queue a request; `grammar` is what `params.grammar` compiles to.

        Args:
            answered: first tokens of the answer, which another engine gave; the deltas are those
                after them, as that engine would have gone on.

        Raises:
            RequestError: for a prompt that is empty, too long or has unknown tokens, an id that is
                in use, or a policy, budget or adapter that cannot be had.
            QueueFullError: when too many wait.
        """
        params = self._admission.check(prompt, params, answered)
        sampling = self._sampling(params, prompt, grammar=grammar) if params.max_tokens else None
        if sampling is not None:
            sampling.replay(answered)
        request = generation(request_id, prompt, params, sampling, answered)
        request.lens = Lens(self._frame_pace) if params.lens else None
        self._scheduler.add(request)

    def submit_embedding(
        self, request_id: str, prompt: list[int], *, adapter: str | None = None
    ) -> None:
        """Queue a text to be embedded: the mean of its tokens' last hidden states, of length 1.

        Its one delta has `embedding`. Raises as `submit` does.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, adapter=adapter)
        self._admission.check(prompt, params)
        self._scheduler.add(embedding(request_id, prompt, params))

    @property
    def cache_shape(self) -> CacheShape:
        """The cache that each request gets."""
        slots = self._slots
        return CacheShape(
            policy=slots.policy.config.name,
            budgets=tuple(budget for budget in slots.budgets if budget is not None),
            kv_budgets=self._admission.kv_budgets,
            interval=slots.policy.interval,
            layers=slots.model_shape.num_layers,
            heads=slots.model_shape.num_kv_heads,
            slot_bytes=slots.slot_nbytes,
            token_bytes=slots.dense_nbytes(1),
        )

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> list[TokenDelta]:
        """Run one step and return its deltas, those of a request one after the other.

        Each request that decodes gets a token, and more where draft tokens are accepted; prompts
        advance by a chunk, those whose turn it is.
        """
        with one_torch_thread():
            for request in self._scheduler.admit():
                self._admission.reset(request)
                self._prefixes.start(request)
                request.starts()
        started = time.perf_counter()
        batch = self._scheduler.batch(self._slots.room)
        self._counters.steps += 1
        if batch is None:
            return []
        self._speculation.draft(batch)
        rows = zip(batch.requests, batch.tokens, strict=True)
        output = self._runner.forward([request.row(count) for request, count in rows])
        with one_torch_thread():
            self._speculation.keep_replayed(batch)
            deltas = [self._finished(delta) for delta in self._deltas(batch, output)]
        self._scheduler.took(batch, time.perf_counter() - started)
        return deltas

    def _deltas(self, batch: Batch, output: StepOutput) -> list[TokenDelta]:
        """Take in a step; give the next tokens, or the result, of requests that are computed."""
        for row, (request, count) in enumerate(zip(batch.requests, batch.tokens, strict=True)):
            request.advance(count, output.every.get(row))
            self._prefixes.note(request)
        ready = [(row, r) for row, r in enumerate(batch.requests) if r.computed == len(r.tokens)]
        results = [r.result(output.logits[row]) for row, r in ready if r.sampling is None]
        answering = {row: request for row, request in ready if request.sampling is not None}
        chosen = self._speculation.verify(output, answering)
        pairs = zip(answering.values(), chosen, strict=True)
        answers = [request.take(own, self._slots) for request, own in pairs]
        deltas = [delta for own in answers for delta in own]
        self._counters.generated_tokens += sum(delta.token is not None for delta in deltas)
        return results + deltas

    def _finished(self, delta: TokenDelta) -> TokenDelta:
        """End the request whose last delta this is, and add its usage; return others unchanged."""
        if delta.finish_reason is None:
            return delta
        end = self.fail if delta.finish_reason == "error" else self.stop
        return replace(delta, usage=end(delta.request_id))

    def frame(self, request_id: str) -> LensFrame | None:
        """Return what each KV head of a running request that asked for the lens holds now."""
        request = self._scheduler.find(request_id)
        return None if request is None else request.frame(self._slots)

    def stop(self, request_id: str) -> Usage:
        """End a running request as finished, e.g. at a stop text, and free its slot."""
        usage = self._end(request_id, keep=True)
        self._counters.requests_finished += 1
        return usage

    def fail(self, request_id: str) -> Usage:
        """End a running request that cannot go on, and free its slot."""
        usage = self._end(request_id, keep=False)
        self._counters.requests_failed += 1
        return usage

    def cancel(self, request_id: str) -> None:
        """Drop a request, waiting or running, and free its slot at once; ignore unknown ids."""
        if self._scheduler.find(request_id) is not None:
            self._end(request_id, keep=False)
            self._counters.requests_cancelled += 1

    def _end(self, request_id: str, *, keep: bool) -> Usage:
        request = self._scheduler.find(request_id)
        if request is None:
            raise KeyError(f"no request {request_id!r} is running")
        usage = request.usage(self._slots)
        request.log(logging.DEBUG, "ends after %d tokens", usage.completion_tokens)
        self._counters.prompt_tokens += min(request.computed, request.prompt_length)
        self._counters.evicted_tokens += usage.evicted_tokens
        self._prefixes.end(request, keep=keep)
        if not keep and request.slot is not None:
            self._slots.wipe(request.slot)
        self._scheduler.remove(request)
        return usage

    def close(self) -> None:
        """Write snapshots to their folder, if there is one, for the next start."""
        self._prefixes.flush()

    def stats(self) -> EngineStats:
        """Return the counters as of now, with what is in use."""
        prefixes = self._prefixes.stats()
        return replace(
            self._counters,
            slots_used=len(self._scheduler.running),
            queued=len(self._scheduler.waiting),
            queued_tokens=self._scheduler.unread_tokens,
            drafted_tokens=self._speculation.drafted,
            accepted_tokens=self._speculation.accepted,
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_hit_tokens=prefixes.hit_tokens,
            prefix_bytes=prefixes.bytes,
            prefix_disk_bytes=prefixes.disk_bytes,
        )
