"""Functions that an answer may call, in the words of Anthropic's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from llamahome.requests import Tools
from serve.http import tools as chat
from serve.http.fields import Empty, Off, Strict, only


class ToolParam(Strict):
    """A function; calls always keep to its schema, `strict` or not."""

    type: Literal["custom"] | None = None
    name: chat.Name
    description: str | None = None
    input_schema: chat.Parameters
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: Annotated[Any, only(["direct"])] = None
    defer_loading: Off = None
    input_examples: Empty = None

    def for_chat(self) -> chat.Tool:
        """Return the function as a chat has it."""
        return chat.Tool(
            type="function",
            function=chat.Function(
                name=self.name, description=self.description, parameters=self.input_schema
            ),
        )


class Choice(Strict):
    """The functions that an answer may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str | None, Field(validate_default=True)] = None
    disable_parallel_tool_use: bool | None = None

    @field_validator("name")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) == (info.data.get("type") == "tool"):
            raise PydanticCustomError("missing", "it belongs to the type 'tool', which needs it")
        return value

    def for_chat(self) -> chat.ToolChoice:
        """Return the choice as a chat has it."""
        if self.name is not None:
            function = chat.FunctionName(name=self.name)
            return chat.NamedTool(type="function", function=function)
        return "required" if self.type == "any" else "none" if self.type == "none" else "auto"


def tools_of(tools: Sequence[ToolParam], choice: Choice | None) -> Tools | None:
    """Return what an answer may call; None for nothing.

    Raises:
        ApiError: when the choice names a function that is not there, or two have one name.
    """
    chat.check_names([tool.name for tool in tools], "tools.{}.name")
    return chat.tools_of(
        [tool.for_chat() for tool in tools],
        None if choice is None else choice.for_chat(),
        parallel=choice is None or not choice.disable_parallel_tool_use,
    )
