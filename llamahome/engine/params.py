"""What a request asks for, what it used, and how it can be refused."""

from __future__ import annotations

from dataclasses import dataclass


class EngineError(Exception):
    """Base of what the engine raises."""


class RequestError(EngineError):
    """A request that cannot be run as asked; `field` and `value` say which part of it."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(f"{field}={value!r}: {message}")
        self.field = field
        self.value = value


class QueueFullError(EngineError):
    """Every slot is taken and the queue is full; try again later."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when they end.

    Attributes:
        max_tokens: generated at most.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens whose probability reaches this
            (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751).
        seed: of this request's own generator; None draws one.
        stop: texts that end the answer; they are not part of it.
        ignore_eos: go on past the end-of-sequence token.
        protected: first tokens of the prompt that are never evicted, a system prompt say.
        priority: who waits goes by this, lower first; each level outweighs some time of waiting.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    protected: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError("max_tokens", self.max_tokens, "it must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise RequestError("temperature", self.temperature, "it must lie between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise RequestError("top_p", self.top_p, "it must lie above 0 and at most at 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise RequestError("seed", self.seed, "it must fit into 64 bits")
        if not -100 <= self.priority <= 100:
            raise RequestError("priority", self.priority, "it must lie between -100 and 100")
        if any(not text for text in self.stop):
            raise RequestError("stop", list(self.stop), "a stop text must not be empty")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished request took.

    Attributes:
        prompt_tokens, completion_tokens: tokens in and out.
        kept_tokens, evicted_tokens: entries each KV head held at the end, and those it gave up.
        kv_bytes: bytes of the slot it lived in.
        kv_bytes_dense: bytes its keys and values would take without eviction.
    """

    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int
    evicted_tokens: int
    kv_bytes: int
    kv_bytes_dense: int
