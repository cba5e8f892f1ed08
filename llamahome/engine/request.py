"""A request on its way through the engine, and the deltas that it gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llamahome.cache import Slots
from llamahome.engine.lens import Lens
from llamahome.engine.runners.contract import Every, RowInput
from llamahome.engine.sampling.logprobs import Logprob, PromptLogprobs, TopLogprobs
from llamahome.engine.sampling.prompt_lookup import PromptLookup
from llamahome.engine.sampling.sampler import NOT_FINITE, Choice, SamplingState
from llamahome.lens import LensFrame
from llamahome.requests import FinishReason, SamplingParams, Usage

logger = logging.getLogger(__name__)

# Known tokens of an answer that one step computes; each takes memory for the mass that it adds.
REPLAYED_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class TokenDelta:
    """A token that a step gave a request. `finish_reason` and `usage` are set on its last.

    `logprob` and `top_logprobs`, the likeliest first, are there when `params.logprobs` is, and on
    the first delta `prompt_logprobs` when `params.prompt_logprobs` is. `embedding` is the result
    of `submit_embedding`: float32 (hidden,). `lens` is there now and then, and on the last delta,
    when `params.lens` is.
    """

    request_id: str
    token: int | None
    logprob: float | None = None
    top_logprobs: TopLogprobs = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    embedding: Tensor | None = None
    lens: LensFrame | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    error_field: str | None = None


class Embedding:
    """The mean of a prompt's last hidden states, summed as its chunks are computed."""

    def __init__(self) -> None:
        self._sum = torch.zeros(())
        self._count = 0

    def add(self, hidden: Tensor) -> None:
        """Take in the hidden states (T, hidden) of the next T tokens."""
        self._sum = self._sum + hidden.sum(0).cpu()
        self._count += len(hidden)

    def vector(self) -> Tensor:
        """Return the mean (hidden,), scaled to length 1."""
        mean = self._sum / self._count
        vector: Tensor = mean / mean.norm().clamp(min=1e-12)
        return vector


@dataclass
class PrefixPath:
    """A request's place in the tree of prefixes: its chain of digests, by chunk.

    Attributes:
        wanted: indices of chunks after which a snapshot is to be taken.
    """

    root: bytes
    digests: list[bytes]
    wanted: set[int]


@dataclass(eq=False)
class Request:
    """One request on its way, with all that the parts of the engine remember of it.

    `generation` and `embedding` make one.

    Attributes:
        tokens: the prompt, and after it the generated tokens.
        sampling: chooses the tokens of the answer; None ends the request with its prompt.
        scores: log-probabilities of the prompt, until a delta carries them.
        embedding: the mean of the prompt's hidden states.
        computed: tokens that went through the slot.
        restored: those of the computed tokens that came from a snapshot.
        read_before: prompt tokens that the engine had read when the request got its slot.
        path: the place in the tree of prefixes; None without snapshots.
        lens: makes the frames that the request asked for; None where it did not.
        lookup: finds draft tokens.
        draft: tokens that the current step verifies.
        arrived, admitted, answered: the clock's time when it came, got its slot, and had its first
            token.
        context: of whoever submitted it, for log lines.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    sampling: SamplingState | None = None
    scores: PromptLogprobs | None = None
    embedding: Embedding | None = None
    slot: int | None = None
    computed: int = 0
    restored: int = 0
    read_before: int = 0
    path: PrefixPath | None = None
    lens: Lens | None = None
    lookup: PromptLookup | None = None
    draft: list[int] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    answered: float | None = None
    context: Context = field(default_factory=copy_context)

    @property
    def max_tokens(self) -> int:
        assert self.params.max_tokens is not None, "admission fills it in"
        return self.params.max_tokens

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def left(self) -> int:
        """Tokens that are known and not yet computed."""
        return len(self.tokens) - self.computed

    @property
    def prefilling(self) -> bool:
        """True while prompt tokens are left before the one that gives the next token."""
        return self.left > 1

    @property
    def replaying(self) -> bool:
        """True while tokens of an answer that another engine began are computed again."""
        return self.prefilling and self.computed >= self.prompt_length

    @property
    def wanted(self) -> int:
        """Return the most tokens that a step may compute: of the prompt, or replayed ones.

        Never both, so that a prompt's chunks fall as they did in the engine that began the answer.
        """
        if self.computed < self.prompt_length:
            return self.prompt_length - self.computed
        return min(len(self.tokens) - self.computed, REPLAYED_AT_ONCE)

    def log(self, level: int, message: str, *values: object) -> None:
        """Write a log line with the fields of whoever submitted the request."""
        if logger.isEnabledFor(level):
            self.context.run(logger.log, level, f"request %s {message}", self.request_id, *values)

    def starts(self) -> None:
        """Note that the request has its slot, set up."""
        self.admitted = time.perf_counter()
        slot, cached, length = self.slot, self.restored, self.prompt_length
        self.log(logging.DEBUG, "has slot %s, %d of %d tokens cached", slot, cached, length)

    def row(self, count: int) -> RowInput:
        """Return the row of a step that computes the next `count` tokens and the draft.

        Replayed tokens are a draft, too: they take the decode path, as they did the first time.
        """
        assert self.slot is not None
        every: Every = "logits" if self.draft or self.scores is not None else None
        return RowInput(
            slot=self.slot,
            tokens=self.tokens[self.computed : self.computed + count] + self.draft,
            adapter=self.params.adapter,
            every=every if self.embedding is None else "hidden",
            drafted=bool(self.draft) or self.replaying,
        )

    def advance(self, count: int, every: Tensor | None) -> None:
        """Count tokens that a step computed.

        Args:
            every: the logits or hidden states (count, ...) of each, if the row asked for them.
        """
        self.computed += count
        for reader in (self.scores, self.embedding):
            if reader is not None and every is not None:
                reader.add(every)

    def take(self, choices: Sequence[Choice], slots: Slots) -> list[TokenDelta]:
        """Append the tokens that a step chose, and return their deltas.

        Only the last choice can end the answer; it is not appended if it is an error or a stop
        token. The last delta carries a frame of the lens if one is due.
        """
        if self.answered is None:
            self.answered = time.perf_counter()
        *accepted, last = choices
        self.tokens += [choice.token for choice in accepted if choice.token is not None]
        deltas = [*map(self._delta, accepted), self._last(last)]
        if self.lens is not None and self.lens.due(final=deltas[-1].finish_reason is not None):
            deltas[-1] = replace(deltas[-1], lens=self.frame(slots))
        return deltas

    def frame(self, slots: Slots) -> LensFrame | None:
        """Return what each KV head holds now; None where the request did not ask for it."""
        if self.lens is None or self.slot is None:
            return None
        return self.lens.frame(self.tokens, slots, self.slot)

    def _last(self, choice: Choice) -> TokenDelta:
        assert self.sampling is not None
        if choice.token is None:
            return self._delta(choice, "error")
        if choice.token in self.sampling.stop_token_ids:
            return self._delta(Choice(), "stop")
        self.tokens.append(choice.token)
        if self.sampling.finished:
            return self._delta(choice, "stop")
        return self._delta(choice, "length" if self.generated == self.max_tokens else None)

    def result(self, logits: Tensor) -> TokenDelta:
        """Return the only delta of a request that ends with its prompt, whose last logits (V,) are
        given."""
        vector = None if self.embedding is None else self.embedding.vector()
        if not bool(torch.isfinite(logits if vector is None else vector).all()):
            return self._delta(Choice(error=NOT_FINITE), "error")
        return replace(self._delta(Choice(), "length"), embedding=vector)

    def _delta(self, choice: Choice, reason: FinishReason | None = None) -> TokenDelta:
        if choice.error is not None:
            level = logging.ERROR if choice.error_field is None else logging.INFO
            self.log(level, "failed: %s", choice.error)
        scores, self.scores = self.scores, None
        return TokenDelta(
            request_id=self.request_id,
            token=choice.token,
            logprob=choice.logprob,
            top_logprobs=choice.top_logprobs,
            prompt_logprobs=() if scores is None else tuple(scores.found),
            finish_reason=reason,
            error=choice.error,
            error_field=choice.error_field,
        )

    def usage(self, slots: Slots) -> Usage:
        """Return what the request, waiting or running, has used so far."""
        held = 0 if self.slot is None else slots.held(self.slot)
        now = time.perf_counter()
        admitted = now if self.admitted is None else self.admitted
        answered = now if self.answered is None else self.answered
        return Usage(
            prompt_tokens=self.prompt_length,
            completion_tokens=self.generated,
            kept_tokens=held,
            evicted_tokens=self.computed - held,
            peak_tokens=0 if self.slot is None else slots.peak(self.slot),
            cached_tokens=min(self.restored, self.prompt_length),
            kv_bytes=slots.slot_nbytes,
            kv_bytes_dense=slots.dense_nbytes(len(self.tokens)),
            queued_s=admitted - self.arrived,
            prefill_s=answered - admitted,
            decode_s=now - answered,
        )


def generation(
    request_id: str,
    prompt: list[int],
    params: SamplingParams,
    sampling: SamplingState | None,
    answered: Sequence[int] = (),
) -> Request:
    """Return a request that answers its prompt, and scores it if `params` asks for that too.

    Without `sampling` it scores alone. The answer goes on after the tokens `answered`.
    """
    count = params.prompt_logprobs
    scores = None if count is None else PromptLogprobs(prompt, count)
    return Request(request_id, [*prompt, *answered], len(prompt), params, sampling, scores)


def embedding(request_id: str, prompt: list[int], params: SamplingParams) -> Request:
    """Return a request for the mean of its prompt's last hidden states."""
    return Request(request_id, list(prompt), len(prompt), params, embedding=Embedding())
