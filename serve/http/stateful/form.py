"""Answers of the Responses API in the types of the `openai` package, whole and as events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from openai.types import responses as types

from llamahome.requests import Usage
from serve.http.choices import Answers
from serve.http.errors import ApiError
from serve.http.logprobs import chat_logprobs
from serve.http.renamed import renamed
from serve.http.responses import engine_counts
from serve.http.stateful.body import NAMES, ResponsesBody
from serve.wire import Delta


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class ResponseForm:
    """One response, which repeats what was asked for."""

    body: ResponsesBody
    stored: bool
    id: str = field(default_factory=lambda: _id("resp"))
    item_id: str = field(default_factory=lambda: _id("msg"))
    created: int = field(default_factory=lambda: int(time.time()))

    def begun(self) -> types.Response:
        """Return the response before its first token."""
        return self._response(status="in_progress", output=[])

    def finished(self, answer: Delta) -> types.Response:
        """Return the whole response."""
        cut = answer.finish_reason == "length"
        return self._response(
            status="incomplete" if cut else "completed",
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=[self.item(answer)],
            usage=_usage(answer.usage),
        )

    def failed(self, error: ApiError) -> types.Response:
        """Return the response that an error has ended."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        message = renamed(error, NAMES).message
        return self._response(status="failed", output=[], error={"code": code, "message": message})

    def item(self, answer: Delta | None) -> dict[str, Any]:
        """Return the one message of the output; None is its beginning."""
        status = "in_progress"
        if answer is not None:
            status = "incomplete" if answer.finish_reason == "length" else "completed"
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if answer is None else [self.part(answer)],
        }

    def part(self, answer: Delta | None) -> dict[str, Any]:
        """Return the message's one part; None is its beginning."""
        text, tokens = ("", ()) if answer is None else (answer.text, answer.tokens)
        logprobs = [logprob.to_dict() for logprob in chat_logprobs(tokens)]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _response(self, **own: Any) -> types.Response:
        body = self.body
        form = None if body.text is None else body.text.format
        repeated = {
            name: getattr(body, name)
            for name in ("instructions", "max_output_tokens", "metadata", "previous_response_id")
        }
        return types.Response.model_validate(
            {
                "id": self.id,
                "object": "response",
                "created_at": self.created,
                "model": body.model,
                **repeated,
                "temperature": 1.0 if body.temperature is None else body.temperature,
                "top_p": 1.0 if body.top_p is None else body.top_p,
                "top_logprobs": body.top_logprobs or 0,
                "text": {
                    "format": {"type": "text"} if form is None else form.model_dump(by_alias=True)
                },
                "tools": [],
                "tool_choice": body.tool_choice or "auto",
                "parallel_tool_calls": body.parallel_tool_calls is not False,
                "truncation": "disabled",
                "background": False,
                "store": self.stored,
                **own,
            }
        )


async def events(
    form: ResponseForm,
    keep: Callable[[types.Response, Delta], Awaitable[None]],
    deltas: AsyncGenerator[Delta, None],
) -> AsyncIterator[str]:
    """Yield a response as server-sent events, in the order of OpenAI's API.

    Args:
        keep: stores a finished response, before its last event is sent.
    """
    numbers = count()

    def event(kind: str, **fields: Any) -> str:
        typed = EVENTS[kind].model_validate(
            {"type": kind, "sequence_number": next(numbers), **fields}
        )
        return f"event: {kind}\ndata: {typed.to_json(indent=None)}\n\n"

    item = {"output_index": 0, "item_id": form.item_id, "content_index": 0}
    yield event("response.created", response=form.begun())
    yield event("response.in_progress", response=form.begun())
    yield event("response.output_item.added", output_index=0, item=form.item(None))
    yield event("response.content_part.added", **item, part=form.part(None))
    answers = Answers(1, 1)
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                answers.add(0, delta)
                if delta.text or delta.tokens:
                    logprobs = form.part(delta)["logprobs"]
                    kind = "response.output_text.delta"
                    yield event(kind, **item, delta=delta.text, logprobs=logprobs)
        answer = answers.whole()[0]
        response = form.finished(answer)
        await keep(response, answer)
    except ApiError as error:
        yield event("response.failed", response=form.failed(error))
        return
    part = form.part(answer)
    logprobs = part["logprobs"]
    yield event("response.output_text.done", **item, text=answer.text, logprobs=logprobs)
    yield event("response.content_part.done", **item, part=part)
    yield event("response.output_item.done", output_index=0, item=form.item(answer))
    yield event(f"response.{response.status}", response=response)


EVENTS: dict[str, Any] = {
    "response.created": types.ResponseCreatedEvent,
    "response.in_progress": types.ResponseInProgressEvent,
    "response.output_item.added": types.ResponseOutputItemAddedEvent,
    "response.content_part.added": types.ResponseContentPartAddedEvent,
    "response.output_text.delta": types.ResponseTextDeltaEvent,
    "response.output_text.done": types.ResponseTextDoneEvent,
    "response.content_part.done": types.ResponseContentPartDoneEvent,
    "response.output_item.done": types.ResponseOutputItemDoneEvent,
    "response.completed": types.ResponseCompletedEvent,
    "response.incomplete": types.ResponseIncompleteEvent,
    "response.failed": types.ResponseFailedEvent,
}


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "llamahome": engine_counts(usage),
    }
