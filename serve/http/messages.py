"""Messages of a chat, checked by role."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.http.errors import invalid_request
from serve.http.fields import Absent, Empty, Strict

# Parts of messages, in each API, that a model of texts cannot read.
MEDIA = {
    "image_url": "images",
    "input_audio": "audio",
    "file": "files",
    "input_image": "images",
    "input_file": "files",
    "image": "images",
    "document": "documents",
}


class TextPart(Strict):
    type: Literal["text"]
    text: str


def readable(part: object) -> object:
    """Refuse a part of a message that is no text, by its kind."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in MEDIA:
        reason = f"{MEDIA[kind]} cannot be read here; send text alone"
        raise PydanticCustomError("unsupported", "{reason}", {"reason": reason})
    return part


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Content = Annotated[
    list[Annotated[TextPart, BeforeValidator(readable)]], BeforeValidator(_as_parts)
]


def _of_an_object(value: str) -> str:
    try:
        given = json.loads(value or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise PydanticCustomError("invalid_value", "it must be the text of a JSON object")
    return value or "{}"


Arguments = Annotated[str, AfterValidator(_of_an_object)]


class CalledFunction(Strict):
    """A call's function; the `openai` client's parsed arguments may come back with it."""

    name: str
    arguments: Arguments
    parsed_arguments: Any = None


class ToolCall(Strict):
    """A call that an assistant's message holds, as an answer gave it."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None

    def for_template(self) -> dict[str, Any]:
        arguments = json.loads(self.function.arguments)
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class Message(Strict):
    """One message of a chat; an answer of this API can be sent back as one, with its nulls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    name: Absent = None
    refusal: Absent = None
    audio: Absent = None
    annotations: Empty = None
    function_call: Absent = None
    parsed: Any = None

    @field_validator("tool_calls")
    @classmethod
    def _of_the_assistant(
        cls, value: list[ToolCall] | None, info: ValidationInfo
    ) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("invalid_value", "only an assistant's message holds calls")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_result(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("role") != "tool":
            raise PydanticCustomError("invalid_value", "it belongs to a message of role tool")
        return value

    @field_validator("content")
    @classmethod
    def _present(cls, value: Content | None, info: ValidationInfo) -> Content | None:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError(
                "missing", "a message needs a text, unless it is an assistant's with tool_calls"
            )
        return value

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates take it; without a text, its content is empty."""
        # "developer" is OpenAI's newer word for the system role; chat templates know the older.
        role = "system" if self.role == "developer" else self.role
        text = "".join(part.text for part in self.content or ())
        message: dict[str, Any] = {"role": role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation as chat templates take it; results have the names of their functions.

    Raises:
        ApiError: for the result of a call that no earlier message holds.
    """
    names: dict[str, str] = {}
    conversation = []
    for index, message in enumerate(messages):
        plain = message.for_template()
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        if message.role == "tool":
            field = f"messages.{index}.tool_call_id"
            if message.tool_call_id not in names:
                reason = "it must be the id of a call in an earlier assistant's message"
                raise invalid_request(f"{field}: {reason}", field)
            plain |= {"tool_call_id": message.tool_call_id, "name": names[message.tool_call_id]}
        conversation.append(plain)
    return conversation
