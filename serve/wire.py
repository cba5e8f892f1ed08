"""What travels between the ingress and an engine replica: plain values, errors included.

Nothing here comes from the engine's floor, so that the ingress starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; `field` is where the client asked for it."""

    kind: Literal["json", "regex", "choice"]
    text: str
    field: str


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One request for an engine; fields as in `llamahome.engine.SamplingParams`.

    Attributes:
        request_id: made by the ingress, unique.
        prompt: text or token ids of a completion; None for a chat.
        messages: of a chat, as the chat template takes them.
        max_tokens: None is whatever the context has left.
        echo: whether the answer begins with the prompt, and its logprobs with the prompt's.
    """

    request_id: str
    prompt: str | list[int] | None = None
    messages: list[dict[str, str]] | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    echo: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None
    kv_budget: int | None = None
    kv_policy: str | None = None
    priority: int = 0
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """One text, or its token ids, to be embedded; its answer is one delta with `embedding`."""

    request_id: str
    prompt: str | list[int]
    adapter: str | None = None


Request = GenerateRequest | EmbedRequest


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished request took; fields as in `llamahome.engine.Usage`."""

    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int
    evicted_tokens: int
    peak_tokens: int
    cached_tokens: int
    kv_bytes: int
    kv_bytes_dense: int


@dataclass(frozen=True)
class TopToken:
    """A token that might have been chosen."""

    data: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token with its log-probability; fields as in `llamahome.engine.TokenText`."""

    data: bytes
    offset: int
    logprob: float | None
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Text added to one answer. `finish_reason` and `usage` are set on the last.

    `tokens` are those of the text, where log-probabilities are asked for. `embedding` is float32,
    little-endian, of a text that was to be embedded.
    """

    text: str
    token_count: int
    tokens: tuple[Token, ...] = ()
    embedding: bytes | None = None
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a replica gives no (further) text.

    `invalid`: the request cannot be run; `full`: the queue is; `failed`: the engine broke on this
    request; `unavailable`: it had broken before, and another replica may serve it.
    """

    kind: Literal["invalid", "full", "failed", "unavailable"]
    message: str
    field: str | None = None


Reply = Delta | Failure


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """One engine replica: whether its engine runs, and what is in use."""

    replica: str
    running: bool
    slots: int
    slots_used: int
    queued: int
    kv_bytes: int
    drafted_tokens: int
    accepted_tokens: int
    prefix_hits: int
    prefix_misses: int
    prefix_hit_tokens: int
    prefix_bytes: int
