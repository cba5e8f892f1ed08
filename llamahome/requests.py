"""The plain values that an engine and its clients share; standard library only, so no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# A lower temperature separates two logits no better than greedy decoding does.
GREEDY_BELOW = 1e-5
MAX_LOGPROBS = 20

FinishReason = Literal["stop", "length", "error"]
GrammarKind = Literal["json", "regex", "choice", "lark"]


class EngineError(Exception):
    """Base of what the engine raises."""


class RequestError(EngineError):
    """A request that cannot run as asked: `field` has `value`, and `reason` says what is wrong."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(f"{field}={value!r}: {message}")
        self.field = field
        self.value = value
        self.reason = message

    def for_client(self, field: str) -> str:
        """Return the message under the client's name for the field, without a text it sent."""
        shown = f"={self.value!r}" if isinstance(self.value, int | float | None) else ""
        return f"{field}{shown}: {self.reason}"


class QueueFullError(EngineError):
    """Every slot is taken and the queue is full; try again later."""


@dataclass(frozen=True)
class Grammar:
    """The form that an answer must have.

    Attributes:
        kind: `json` (text is a JSON schema; `{"type": "object"}` is any object), `regex`,
            `choice` (text is a JSON list of the texts to choose from), or `lark`, llguidance's own.
        text: the grammar, in the syntax of `kind`.
        source: the client's field that it came from, for error messages.
    """

    kind: GrammarKind
    text: str
    source: str = "grammar"


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The functions that an answer may call.

    Attributes:
        offered: as chat templates take them: `{"type": "function", "function": {"name", ...}}`.
        callable: names of those that this answer may call.
        required: the answer is one call or more; otherwise it may be text.
        parallel: it may hold several calls.
    """

    offered: list[dict[str, Any]]
    callable: tuple[str, ...]
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, kw_only=True)
class CallFormat:
    """The texts that a model writes around the names and arguments of its calls.

    An answer's calls are: `opening` name `middle` arguments (`following` name `middle` arguments)*
    `closing`. `following` is None where only one call fits into an answer.
    """

    opening: str
    middle: str
    following: str | None
    closing: str

    @property
    def marker(self) -> str:
        """The start of `opening` that no other text holds.

        It is empty where calls are plain JSON: then only an answer's first character tells.
        """
        return re.split(r"[\s{\[]", self.opening, maxsplit=1)[0]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when they end; names and meanings are vLLM's.

    Attributes:
        max_tokens: most tokens to generate; None fills the context; 0 is for `prompt_logprobs`
            alone.
        min_tokens: tokens to generate before an end-of-sequence or stop token or a stop text may
            end the answer.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens whose probability reaches this
            (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751).
        top_k: sample from this many of the likeliest tokens; 0 from all.
        min_p: sample from tokens with at least this share of the likeliest one's probability
            (Nguyen et al. 2024, arXiv 2407.01082).
        repetition_penalty: divides positive logits, and multiplies negative ones, of all tokens
            in the prompt or the answer (Keskar et al. 2019, arXiv 1909.05858).
        presence_penalty, frequency_penalty: subtracted from the logits of tokens of the answer,
            once, and once per occurrence.
        logit_bias: token id to the number that is added to its logit, -100 to 100.
        seed: seed of this request's own generator; None draws one.
        logprobs: log-probabilities of the chosen token and of this many of the likeliest, under
            the model alone: before temperature, penalties and grammar. None gives none.
        prompt_logprobs: the same for every token of the prompt.
        echo: the prompt's text, which the answer then begins with; with `prompt_logprobs` the
            prompt's tokens are listed with it.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer as the end-of-sequence token does.
        ignore_eos: go on past the end-of-sequence token.
        grammar: the form that the answer must have.
        protected: first tokens of the prompt that are never evicted, e.g. a system prompt.
        kv_budget, kv_policy: used instead of the engine's own, up to what a slot holds. A budget of
            up to 1 is a share of the engine's max_length.
        priority: lower runs first.
        adapter: name of the LoRA adapter to answer with; None is the model itself.
        lens: add frames to the answer that show which tokens each KV head still holds.

    Raises:
        RequestError: for a value out of its range.
    """

    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: str | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None
    protected: int = 0
    kv_budget: float | None = None
    kv_policy: str | None = None
    priority: int = 0
    adapter: str | None = None
    lens: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            if self.max_tokens < 1 and (self.max_tokens < 0 or self.prompt_logprobs is None):
                raise RequestError("max_tokens", self.max_tokens, "it must be at least 1")
            self._between("min_tokens", 0, self.max_tokens)
        self._between("temperature", 0, 100)
        self._above_zero("top_p", 1)
        self._between("top_k", 0, 2**31)
        self._between("min_p", 0, 1)
        self._between("repetition_penalty", 0.01, 100)  # logits must stay finite
        self._between("presence_penalty", -2, 2)
        self._between("frequency_penalty", -2, 2)
        wrong = next((b for b in self.logit_bias.values() if not -100 <= b <= 100), None)
        if wrong is not None:
            raise RequestError("logit_bias", wrong, "a bias must lie between -100 and 100")
        self._between("logprobs", 0, MAX_LOGPROBS)
        self._between("prompt_logprobs", 0, MAX_LOGPROBS)
        if self.kv_budget is not None:
            self._above_zero("kv_budget", 2**31)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise RequestError("seed", self.seed, "it must fit into 64 bits")
        if any(not text for text in self.stop):
            raise RequestError("stop", list(self.stop), "a stop text must not be empty")

    def _between(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise RequestError(name, value, f"it must lie between {low} and {high}")

    def _above_zero(self, name: str, high: float) -> None:
        value = getattr(self, name)
        if not 0 < value <= high:
            raise RequestError(name, value, f"it must lie above 0 and at most at {high}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The part of an answer that another engine gave before it was lost.

    Attributes:
        tokens: the answer's tokens so far, whose text has been returned or is held back.
        held: log-probability and top alternatives of the last of them, those whose text is held
            back; only where log-probabilities are asked for.
    """

    tokens: tuple[int, ...] = ()
    held: tuple[tuple[float | None, tuple[tuple[int, float], ...]], ...] = ()


@dataclass(frozen=True)
class TopToken:
    """An alternative to a chosen token; `data` is its bytes."""

    data: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token with its log-probability under the model.

    Attributes:
        id: its number in the vocabulary.
        data: its bytes; a character may be spread over several tokens.
        offset: where in the text it begins, in characters.
        logprob: None for the first token of a prompt, which nothing predicts.
        top: the likeliest tokens in its place, the likeliest first.
    """

    id: int
    data: bytes
    offset: int
    logprob: float | None
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources that a request used.

    Attributes:
        prompt_tokens, completion_tokens: tokens in and out.
        kept_tokens, evicted_tokens: entries each KV head held at the end, and those it gave up.
        peak_tokens: entries each KV head held at most.
        cached_tokens: prompt tokens that came from a prefix snapshot.
        kv_bytes: bytes of its slot.
        kv_bytes_dense: bytes its keys and values would take without eviction.
        queued_s, prefill_s, decode_s: seconds until it had a slot, from then to its first token,
            and from that to its end. Two that differ in these alone are equal.
    """

    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int
    evicted_tokens: int
    peak_tokens: int
    cached_tokens: int
    kv_bytes: int
    kv_bytes_dense: int
    queued_s: float = field(default=0.0, compare=False)
    prefill_s: float = field(default=0.0, compare=False)
    decode_s: float = field(default=0.0, compare=False)


@dataclass(kw_only=True)
class EngineStats:
    """Counters of an engine since its start, and what is in use now. Bytes are as allocated.

    Attributes:
        queued_tokens: prompt tokens that are still to be read, in slots and in the queue.
        runner: how it computes: the C++ kernels, their instruction set and precisions, or torch.
        drafted_tokens, accepted_tokens: draft tokens, and how many of them were accepted.
        prefix_*: prefix snapshots: prompts that began from one or not, tokens they saved, bytes
            in memory and in the folder.
    """

    slots: int
    kv_bytes: int
    runner: str = ""
    slots_used: int = 0
    queued: int = 0
    queued_tokens: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    evicted_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_hit_tokens: int = 0
    prefix_bytes: int = 0
    prefix_disk_bytes: int = 0
