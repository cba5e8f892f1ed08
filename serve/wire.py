"""What travels between the ingress and an engine replica: plain values, errors included.

Nothing here comes from the engine's floor, so that the ingress starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One request for an engine; fields as in `llamahome.engine.SamplingParams`.

    Attributes:
        request_id: made by the ingress, unique.
        prompt: text or token ids of a completion; None for a chat.
        messages: of a chat, as the chat template takes them.
        max_tokens: None is whatever the context has left.
    """

    request_id: str
    prompt: str | list[int] | None = None
    messages: list[dict[str, str]] | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished request took; fields as in `llamahome.engine.Usage`."""

    prompt_tokens: int
    completion_tokens: int
    kept_tokens: int
    evicted_tokens: int
    kv_bytes: int
    kv_bytes_dense: int


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Text added to one answer. `finish_reason` and `usage` are set on the last."""

    text: str
    token_count: int
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
