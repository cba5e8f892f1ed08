"""The messages between the ingress and an engine replica: plain values, errors included.

What a request is comes from `llamahome.requests`, so the ingress starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llamahome.lens import CacheShape, LensFrame
from llamahome.requests import (
    CallFormat,
    EngineStats,
    Progress,
    SamplingParams,
    Token,
    Tools,
    Usage,
)
from serve.catalog import Served


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The HTTP request that a request for the engine belongs to, for logs and traces. No secrets.

    Attributes:
        request_id: the client's X-Request-Id, or what the ingress gave it.
        model: the name of the model that computes.
        key: the name of its sender's key.
        traceparent: its span in W3C's form, where requests are traced.
    """

    request_id: str
    model: str | None = None
    key: str | None = None
    traceparent: str | None = None

    def about(self) -> dict[str, object]:
        """Return the fields of its log lines."""
        fields = {"request_id": self.request_id, "model": self.model, "key": self.key}
        if self.traceparent is not None:
            fields["trace_id"] = self.traceparent.split("-")[1]
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One request for an answer.

    Attributes:
        request_id: made by the ingress, unique.
        params: as the client asked; the replica adds the echoed text and the protected tokens.
        prompt: text or token ids of a completion; None for a chat.
        messages: a chat's, as the chat template takes them.
        add_generation_prompt, continue_final_message: how a chat's prompt ends.
        tools: the functions that the answer may call.
        template_options: values of variables that the chat template reads.
        left_out: sampling parameters that the client did not send; the model may have its own.
        echo: whether the answer begins with the prompt.
        progress: what a replica that was lost gave of the answer; None for a first try.
        model: the model that answers, which the ingress fills in; None is a replica's own.
    """

    request_id: str
    params: SamplingParams
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Tools | None = None
    template_options: dict[str, Any] | None = None
    left_out: frozenset[str] = frozenset()
    echo: bool = False
    progress: Progress | None = None
    model: Served | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """One text, or its token ids, to be embedded; its answer is one delta with `embedding`."""

    request_id: str
    prompt: str | list[int]
    adapter: str | None = None
    model: Served | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """A text, or a chat, to be split into tokens; its answer is one delta with `tokenized`.

    A chat's `tools` and `template_options` are those of a GenerateRequest.
    """

    request_id: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: Tools | None = None
    template_options: dict[str, Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    adapter: str | None = None
    model: Served | None = None


@dataclass(frozen=True, kw_only=True)
class DetokenizeRequest:
    """Token ids to be turned into text; its answer is one delta."""

    request_id: str
    tokens: list[int]
    adapter: str | None = None
    model: Served | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A text whose probability after a context is asked for.

    The answer's `tokens` are those of `text`, each with its log-probability.

    Attributes:
        field: the client's field that holds the text, for error messages.
    """

    request_id: str
    context: str
    text: str
    adapter: str | None = None
    field: str = "text"
    model: Served | None = None


Request = GenerateRequest | EmbedRequest | TokenizeRequest | DetokenizeRequest | ScoreRequest


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Tokens of a text: their ids, the tokenizer's names of them, and the context's length."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    max_length: int


@dataclass(frozen=True, kw_only=True)
class CallDelta:
    """Text added to the arguments of one call; `id` and `name` are set on the call's first."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Text added to one answer. `finish_reason` and `usage` are set on the last.

    `tokens` are the tokens of the text, where log-probabilities are asked for. `embedding` is the
    result of an `EmbedRequest`: float32, little-endian. `stop_text` is the stop text that ended the
    answer, where one did. `lens` is a frame that the request asked for. `ids` and `held` are for
    another replica, should this one be lost (see `Progress`).
    answer, where one did. `ids` and `held` are for another replica, should this one be lost (see
    `Progress`). `replica`, the name of the one that answers, is set on the first.

    A replica writes calls as the model does, into `text`, and sets `call_format` on the first delta
    of a request with tools; `serve.http.calls` makes `calls` of them.
    """

    text: str
    token_count: int
    tokens: tuple[Token, ...] = ()
    ids: tuple[int, ...] = ()
    held: tuple[tuple[float | None, tuple[tuple[int, float], ...]], ...] = ()
    embedding: bytes | None = None
    calls: tuple[CallDelta, ...] = ()
    call_format: CallFormat | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    usage: Usage | None = None
    replica: str | None = None
    stop_text: str | None = None
    tokenized: Tokenized | None = None
    lens: LensFrame | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why a replica gives no (further) text.

    `invalid`: the request cannot run; `full`: the queue is; `failed`: the engine gave this request
    up; `crashed`: it broke while it held the request; `unavailable`: it had broken before, and
    another replica may serve it.
    """

    kind: Literal["invalid", "full", "failed", "crashed", "unavailable"]
    message: str
    field: str | None = None


@dataclass(frozen=True)
class Accepted:
    """The first reply to a request that another replica has lost: from now on this one holds it."""


Reply = Delta | Failure | Accepted

# Before each message on a line, its length, big-endian.
LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ReplyTo:
    """Destination of replies to one request: an ingress's port, its secret, the answer's number.

    `serve.ray.mailbox` says how.
    """

    host: str
    port: int
    secret: bytes = field(repr=False)
    number: int


@dataclass(frozen=True, kw_only=True)
class ModelStats:
    """The figures of one model in a replica, by its client's name."""

    name: str
    engine: EngineStats
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """The state of one engine replica: whether its engines run, and their figures together.

    `max_length` is the longest context of a request to the first model, in tokens, and `cache` what
    it is given; `models` has the figures of each model that is loaded.
    """

    replica: str
    running: bool
    engine: EngineStats
    max_length: int | None = None
    models: tuple[ModelStats, ...] = ()
    cache: CacheShape | None = None
