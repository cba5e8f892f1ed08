"""Messages of Anthropic's API: text, calls and their results, as the turns of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field

from serve.http.errors import invalid_request
from serve.http.fields import Absent, Empty, Strict, only
from serve.http.messages import readable

Turns = list[dict[str, Any]]


class TextBlock(Strict):
    """A block of text; prompts are cached here without being asked to."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: Empty = None


class ToolUse(Strict):
    """A call of a function, as an answer gave it."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any]
    cache_control: dict[str, Any] | None = None
    caller: Annotated[Any, only({"type": "direct"})] = None
    toolset_name: Absent = None

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates take it."""
        function = {"name": self.name, "arguments": self.input}
        return {"id": self.id, "type": "function", "function": function}


Text = str | list[Annotated[TextBlock, BeforeValidator(readable)]]


class ToolResult(Strict):
    """The result of a call; the model reads an error as such by its first word."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None
    toolset_name: Absent = None

    def for_template(self, name: str) -> dict[str, Any]:
        """Return the result of the function `name` as chat templates take it."""
        text = text_of(self.content or "")
        content = f"Error: {text}" if self.is_error else text
        return {"role": "tool", "content": content, "tool_call_id": self.tool_use_id, "name": name}


Block = Annotated[TextBlock | ToolUse | ToolResult, Field(discriminator="type")]


class MessageParam(Strict):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Annotated[Block, BeforeValidator(readable)]]

    @property
    def blocks(self) -> Sequence[TextBlock | ToolUse | ToolResult]:
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return self.content


def conversation(messages: Sequence[MessageParam]) -> Turns:
    """Return messages as chat templates take them; each result is a turn.

    Raises:
        ApiError: for a block in a message of the wrong role, a result without its call, or a call
            at the end, where its result belongs.
    """
    names: dict[str, str] = {}
    turns: Turns = []
    for index, message in enumerate(messages):
        field = f"messages.{index}.content"
        if message.role == "assistant":
            turns.append(_answer(message, field, names))
        else:
            turns += _asked(message, field, names)
    if turns[-1].get("tool_calls"):
        field = f"messages.{len(messages) - 1}"
        raise invalid_request(f"{field}: a tool_use needs a tool_result in the next message", field)
    return turns


def text_of(content: Text) -> str:
    """Return the text of a message's content."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _answer(message: MessageParam, field: str, names: dict[str, str]) -> dict[str, Any]:
    texts, calls = [], []
    for index, block in enumerate(message.blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolUse():
                calls.append(block.for_template())
                names[block.id] = block.name
            case ToolResult():
                _refuse(f"{field}.{index}", "a tool_result belongs into a message of the user's")
    turn: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    return {**turn, "tool_calls": calls} if calls else turn


def _asked(message: MessageParam, field: str, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    results = 0
    for index, block in enumerate(message.blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolUse():
                _refuse(f"{field}.{index}", "a tool_use belongs into a message of the assistant's")
            case ToolResult():
                if texts:
                    _refuse(f"{field}.{index}", "results come before any text")
                if block.tool_use_id not in names:
                    reason = "it must be the id of an earlier tool_use"
                    _refuse(f"{field}.{index}.tool_use_id", reason)
                results += 1
                yield block.for_template(names[block.tool_use_id])
    if texts or not results:
        yield {"role": message.role, "content": "".join(texts)}


def _refuse(field: str, reason: str) -> NoReturn:
    raise invalid_request(f"{field}: {reason}", field)
