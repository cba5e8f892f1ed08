"""One HTTP request: its sender, what it may do, and what came of it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from llamahome.keys import Key
from serve.wire import Delta, Origin


@dataclass(kw_only=True)
class Call:
    """One HTTP request, filled in on its way.

    Attributes:
        request_id: the client's, where it is plain, or our own.
        key: its sender's; None where no key is asked for, or none was right.
        model: the model that computed.
        ttft_s: seconds to the first token; None before it.
        finishes: how its answers ended.
        replicas: names of the engine replicas that answered.
        left: whether the client left before the end.
        error: the code of the error that the client was given, and its text where it is ours.
        traceparent: the span of the request, in W3C's form; None without traces.
        rates: the values of OpenAI's x-ratelimit headers, without that prefix.
    """

    request_id: str
    key: Key | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ttft_s: float | None = None
    finishes: set[str] = field(default_factory=set)
    replicas: set[str] = field(default_factory=set)
    left: bool = False
    error: str | None = None
    reason: str | None = None
    traceparent: str | None = None
    _start: float = field(default_factory=time.perf_counter)
    rates: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return for how long the request has been here."""
        return time.perf_counter() - self._start

    @property
    def origin(self) -> Origin:
        """Return the facts that go to replicas with it."""
        key = None if self.key is None else self.key.name
        return Origin(
            request_id=self.request_id, model=self.model, key=key, traceparent=self.traceparent
        )

    def note(self, delta: Delta) -> None:
        if self.ttft_s is None and delta.token_count:
            self.ttft_s = self.seconds
        self.completion_tokens += delta.token_count
        if delta.replica is not None:
            self.replicas.add(delta.replica)
        if delta.usage is not None:
            self.prompt_tokens += delta.usage.prompt_tokens
            self.cached_tokens += delta.usage.cached_tokens
        if delta.finish_reason is not None:
            self.finishes.add(delta.finish_reason)


# The request that is being answered. Tasks that an endpoint starts see it, too.
CALL: ContextVar[Call | None] = ContextVar("call", default=None)
