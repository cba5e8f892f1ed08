"""Text in, text out: the messages of the plain endpoints."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from serve.http.bodies import checked_fields
from serve.http.errors import ApiError
from serve.http.fields import Strict
from serve.http.protocol import ChatRequest
from serve.http.renamed import renamed
from serve.wire import Delta

# A client's names for the fields of a chat, and of the engine.
NAMES = {"messages": "text", "prompt": "text"}


class PlainBody(Strict):
    """POST /api/v1/process and /api/v1/stream: a text that a chat's user says."""

    text: Annotated[str, Field(min_length=1)]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    def chat(self, model_id: str) -> ChatRequest:
        """Return the chat that this text begins.

        Raises:
            ApiError: for a value that a chat does not take.
        """
        fields: dict[str, Any] = self.model_dump(exclude={"text", "model"}, exclude_none=True)
        fields |= {"model": model_id, "messages": [{"role": "user", "content": self.text}]}
        try:
            return checked_fields(ChatRequest, fields)
        except ApiError as error:
            raise renamed(error, NAMES) from None


class Ending(TypedDict):
    """The end of an answer."""

    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class PlainAnswer(Ending):
    """A whole answer."""

    text: str


def parts(delta: Delta) -> list[Any]:
    """Return the messages of one delta: its text, and on the last how the answer ended."""
    text = [{"text": delta.text}] if delta.text else []
    return [*text, *([ending(delta)] if delta.finish_reason is not None else [])]


def ending(answer: Delta) -> Ending:
    """Say how an answer ended, and what it used."""
    usage = answer.usage
    return {
        "finish_reason": answer.finish_reason,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
    }


async def events(deltas: AsyncGenerator[Delta, None]) -> AsyncIterator[str]:
    """Yield an answer as server-sent events."""
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                for part in parts(delta):
                    yield f"data: {json.dumps(part)}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(renamed(error, NAMES).body())}\n\n"
