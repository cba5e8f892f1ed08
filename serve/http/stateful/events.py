"""A response as server-sent events, in the order of OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from openai.types import responses as types

from llamahome.requests import Token
from serve.http.choices import Answers
from serve.http.errors import ApiError
from serve.http.stateful.form import ResponseForm, item_id_of, last_status, part
from serve.http.stateful.items import Status
from serve.wire import CallDelta, Delta

# Type of an event after "response.", and its fields.
Event = tuple[str, dict[str, Any]]

EVENTS: dict[str, Any] = {
    "created": types.ResponseCreatedEvent,
    "in_progress": types.ResponseInProgressEvent,
    "output_item.added": types.ResponseOutputItemAddedEvent,
    "content_part.added": types.ResponseContentPartAddedEvent,
    "output_text.delta": types.ResponseTextDeltaEvent,
    "output_text.done": types.ResponseTextDoneEvent,
    "content_part.done": types.ResponseContentPartDoneEvent,
    "function_call_arguments.delta": types.ResponseFunctionCallArgumentsDeltaEvent,
    "function_call_arguments.done": types.ResponseFunctionCallArgumentsDoneEvent,
    "output_item.done": types.ResponseOutputItemDoneEvent,
    "completed": types.ResponseCompletedEvent,
    "incomplete": types.ResponseIncompleteEvent,
    "failed": types.ResponseFailedEvent,
}


async def events(
    form: ResponseForm,
    keep: Callable[[types.Response, Delta], Awaitable[None]],
    deltas: AsyncGenerator[Delta, None],
) -> AsyncIterator[str]:
    """Yield a response as it grows.

    Args:
        keep: stores a finished response, before its last event is sent.
    """
    numbers = count()
    async for kind, fields in _events(form, keep, deltas):
        event = {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}
        typed = EVENTS[kind].model_validate(event)
        yield f"event: response.{kind}\ndata: {typed.to_json(indent=None)}\n\n"


async def _events(
    form: ResponseForm,
    keep: Callable[[types.Response, Delta], Awaitable[None]],
    deltas: AsyncGenerator[Delta, None],
) -> AsyncIterator[Event]:
    yield "created", {"response": form.begun()}
    yield "in_progress", {"response": form.begun()}
    answers, items = Answers(1, 1), _Items(form)
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                answers.add(0, delta)
                for event in items.add(delta):
                    yield event
        answer = answers.whole()[0]
        for event in items.end(last_status(answer)):
            yield event
        response = form.finished(answer)
        await keep(response, answer)
    except ApiError as error:
        yield "failed", {"response": form.failed(error)}
        return
    yield str(response.status), {"response": response}


class _Items:
    """The items of an answer, one after the other."""

    def __init__(self, form: ResponseForm) -> None:
        self._form = form
        self._count = 0
        self._open: _Message | _Call | None = None
        self._tokens: tuple[Token, ...] = ()  # those whose text has not come yet

    def add(self, delta: Delta) -> Iterator[Event]:
        self._tokens += delta.tokens
        if delta.text or (delta.tokens and isinstance(self._open, _Message)):
            yield from self._text(delta.text)
        for call in delta.calls:
            if call.id is not None:
                yield from self._begin(_Call(self._form, self._count, call))
            else:
                assert isinstance(self._open, _Call)
                yield from self._open.add(call.arguments)

    def end(self, status: Status) -> Iterator[Event]:
        """End the last item; an answer without any is an empty message."""
        if self._open is None:
            yield from self._text("")
        yield from self._finish(status)

    def _text(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, _Message):
            yield from self._begin(_Message(self._form, self._count))
        assert isinstance(self._open, _Message)
        tokens, self._tokens = self._tokens, ()
        yield from self._open.add(text, tokens)

    def _begin(self, item: _Message | _Call) -> Iterator[Event]:
        yield from self._finish("completed")
        self._open = item
        self._count += 1
        yield from item.begin()

    def _finish(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.finish(status)


@dataclass
class _Message:
    form: ResponseForm
    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()

    @property
    def _at(self) -> dict[str, Any]:
        return {"output_index": self.index, "item_id": self.form.item_id, "content_index": 0}

    def begin(self) -> Iterator[Event]:
        item = self.form.begun_message()
        yield "output_item.added", {"output_index": self.index, "item": item}
        yield "content_part.added", {**self._at, "part": part("", ())}

    def add(self, text: str, tokens: tuple[Token, ...]) -> Iterator[Event]:
        self.text += text
        self.tokens += tokens
        if text or tokens:
            logprobs = part(text, tokens)["logprobs"]
            yield "output_text.delta", {**self._at, "delta": text, "logprobs": logprobs}

    def finish(self, status: Status) -> Iterator[Event]:
        whole = part(self.text, self.tokens)
        logprobs = whole["logprobs"]
        yield "output_text.done", {**self._at, "text": self.text, "logprobs": logprobs}
        yield "content_part.done", {**self._at, "part": whole}
        item = self.form.message(self.text, self.tokens, status)
        yield "output_item.done", {"output_index": self.index, "item": item}


@dataclass
class _Call:
    form: ResponseForm
    index: int
    call: CallDelta

    @property
    def _at(self) -> dict[str, Any]:
        return {"output_index": self.index, "item_id": item_id_of(self.call.id or "")}

    def begin(self) -> Iterator[Event]:
        item = self.form.call(self.call, "in_progress")
        yield "output_item.added", {"output_index": self.index, "item": item}

    def add(self, arguments: str) -> Iterator[Event]:
        self.call = replace(self.call, arguments=self.call.arguments + arguments)
        yield "function_call_arguments.delta", {**self._at, "delta": arguments}

    def finish(self, status: Status) -> Iterator[Event]:
        named = {"name": self.call.name, "arguments": self.call.arguments}
        yield "function_call_arguments.done", {**self._at, **named}
        item = self.form.call(self.call, status)
        yield "output_item.done", {"output_index": self.index, "item": item}
