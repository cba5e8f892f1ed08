"""Answers in the shapes of Anthropic's Messages API, whole and as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Literal

from pydantic_core import from_json
from typing_extensions import TypedDict

from llamahome.requests import Usage
from serve.http.anthropic.body import NAMES
from serve.http.calls import whole_calls
from serve.http.errors import ApiError
from serve.http.renamed import renamed
from serve.wire import CallDelta, Delta

# Type of an event, and its fields.
Event = tuple[str, dict[str, Any]]


class Ending(TypedDict):
    """The reason why an answer ended; nulls while it grows."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageAnswer(Ending):
    """A whole answer; the `anthropic` package, which describes it, is no part of a server."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    usage: dict[str, int]


def message(request_id: str, model: str, answer: Delta) -> MessageAnswer:
    """Return a whole answer."""
    calls = whole_calls(answer.calls)
    content = [_tool_use(call, _arguments(call)) for call in calls]
    if answer.text or not calls:
        content.insert(0, _text(answer.text))
    usage = _input_usage(answer.usage) | {"output_tokens": _output_tokens(answer.usage)}
    return _message(request_id, model, content, usage, _ending(answer))


async def events(
    request_id: str, model: str, deltas: AsyncGenerator[Delta, None]
) -> AsyncIterator[str]:
    """Yield an answer as server-sent events, in the order of Anthropic's API.

    The engine counts the prompt's tokens when an answer ends, so `message_start` says 0 of them,
    and `message_delta` has all counts.
    """
    begun = {"input_tokens": 0, "output_tokens": 0}
    ending = Ending(stop_reason=None, stop_sequence=None)
    yield _event("message_start", message=_message(request_id, model, [], begun, ending))
    blocks = _Blocks()
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                for kind, fields in blocks.add(delta):
                    yield _event(kind, **fields)
                if delta.finish_reason is not None:
                    usage = _input_usage(delta.usage)
                    usage["output_tokens"] = _output_tokens(delta.usage)
                    yield _event("message_delta", delta=_ending(delta), usage=usage)
        except ApiError as error:
            yield f"event: error\ndata: {json.dumps(renamed(error, NAMES).anthropic())}\n\n"
            return
    yield _event("message_stop")


class _Blocks:
    """The blocks of an answer, one after the other."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None

    def add(self, delta: Delta) -> Iterator[Event]:
        if delta.text:
            yield from self._begin_text()
            yield self._grown({"type": "text_delta", "text": delta.text})
        for call in delta.calls:
            if call.id is not None:
                yield from self._begin(_tool_use(call, {}))
            if call.arguments:
                yield self._grown({"type": "input_json_delta", "partial_json": call.arguments})
        if delta.finish_reason is not None:
            if self._open is None:  # an empty answer is an empty text
                yield from self._begin_text()
            yield from self._end()

    def _begin_text(self) -> Iterator[Event]:
        if self._open != "text":
            yield from self._begin(_text(""))

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._end()
        self._index += 1
        self._open = block["type"]
        yield "content_block_start", {"index": self._index, "content_block": block}

    def _grown(self, part: dict[str, Any]) -> Event:
        return "content_block_delta", {"index": self._index, "delta": part}

    def _end(self) -> Iterator[Event]:
        if self._open is not None:
            yield "content_block_stop", {"index": self._index}


def _message(
    request_id: str,
    model: str,
    content: list[dict[str, Any]],
    usage: dict[str, int],
    ending: Ending,
) -> MessageAnswer:
    return MessageAnswer(
        id=request_id,
        type="message",
        role="assistant",
        model=model,
        content=content,
        usage=usage,
        **ending,
    )


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _tool_use(call: CallDelta, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _arguments(call: CallDelta) -> dict[str, Any]:
    """Return a call's arguments; of one that was cut, those that had come."""
    given = from_json(call.arguments or "{}", allow_partial=True)
    return given if isinstance(given, dict) else {}


def _ending(answer: Delta) -> Ending:
    """Say why an answer ended."""
    if answer.stop_text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_text}
    named = {"length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": named.get(answer.finish_reason or "", "end_turn"), "stop_sequence": None}


def _input_usage(usage: Usage | None) -> dict[str, int]:
    """Count the prompt's tokens: `input_tokens` leaves out those that a snapshot saved."""
    if usage is None:
        return {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _output_tokens(usage: Usage | None) -> int:
    return 0 if usage is None else usage.completion_tokens


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"
