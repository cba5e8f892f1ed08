"""One HTTP request: its sender, what it may do, and what came of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from llamahome.keys import Key
from serve.wire import Delta


@dataclass(kw_only=True)
class Call:
    """One HTTP request, filled in on its way.

    Attributes:
        request_id: the client's, where it is plain, or our own.
        key: its sender's; None where no key is asked for, or none was right.
        model: the model that computed.
        finishes: how its answers ended.
        rates: the values of OpenAI's x-ratelimit headers, without that prefix.
    """

    request_id: str
    key: Key | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finishes: set[str] = field(default_factory=set)
    rates: dict[str, str] = field(default_factory=dict)

    def note(self, delta: Delta) -> None:
        self.completion_tokens += delta.token_count
        if delta.usage is not None:
            self.prompt_tokens += delta.usage.prompt_tokens
        if delta.finish_reason is not None:
            self.finishes.add(delta.finish_reason)


# The request that is being answered. Tasks that an endpoint starts see it, too.
CALL: ContextVar[Call | None] = ContextVar("call", default=None)
