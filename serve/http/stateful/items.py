"""Input of the Responses API: messages, calls and their results, as the turns of a chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from serve.http.calls import whole_calls
from serve.http.errors import invalid_request
from serve.http.fields import Absent, Empty, Off, Strict, only
from serve.http.messages import Arguments, readable
from serve.wire import Delta

Turns = list[dict[str, Any]]
Status = Literal["in_progress", "completed", "incomplete"]


class Part(Strict):
    """A part of a message; an answer's parts can be sent back as they came."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Empty = None
    logprobs: Any = None
    parsed: Any = None
    prompt_cache_breakpoint: Any = None


Content = str | list[Annotated[Part, BeforeValidator(readable)]]


class MessageItem(Strict):
    """One message; an answer's output can be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: Any = None


class CallItem(Strict):
    """A call of a function, as an answer gave it."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    arguments: Arguments
    id: str | None = None
    status: Status | None = None
    parsed_arguments: Any = None
    async_: Annotated[Off, Field(alias="async")] = None
    caller: Annotated[Any, only({"type": "direct"})] = None
    namespace: Absent = None

    def call(self) -> dict[str, Any]:
        """Return the call as a chat has it."""
        return _call(self.call_id, self.name, self.arguments)


class ResultItem(Strict):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    caller: Annotated[Any, only({"type": "direct"})] = None
    namespace: Absent = None


def _kind(item: object) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_kind),
]


def conversation(before: Turns, items: Sequence[Item]) -> Turns:
    """Return a conversation with the items that follow; text and calls of an answer are one turn.

    Raises:
        ApiError: for the result of a call that is not there.
    """
    turns = list(before)
    known = {call["id"] for turn in turns for call in turn.get("tool_calls") or ()}
    for index, item in enumerate(items):
        match item:
            case MessageItem():
                turns.append({"role": item.role, "content": _text(item.content)})
            case CallItem():
                known.add(item.call_id)
                _add_call(turns, item.call())
            case ResultItem():
                if item.call_id not in known:
                    field = f"input.{index}.call_id"
                    reason = "it must be the call_id of an earlier function_call"
                    raise invalid_request(f"{field}: {reason}", field)
                content = _text(item.output)
                turns.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    return turns


def said(answer: Delta) -> dict[str, Any]:
    """Return an answer as a turn."""
    turn: dict[str, Any] = {"role": "assistant", "content": answer.text}
    calls = [_call(c.id or "", c.name or "", c.arguments) for c in whole_calls(answer.calls)]
    return {**turn, "content": answer.text or None, "tool_calls": calls} if calls else turn


def _add_call(turns: Turns, call: dict[str, Any]) -> None:
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    turns[-1] = {**turns[-1], "tool_calls": [*(turns[-1].get("tool_calls") or ()), call]}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _text(content: str | Iterable[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
