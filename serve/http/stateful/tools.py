"""Functions that a response may call, in the Responses API's flat form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.http.fields import Absent, Off, Strict, only
from serve.http.tools import Function, Name, Parameters, check_names


class FunctionTool(Strict):
    """A function without the object that a chat's tool wraps it in."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None
    allowed_callers: Annotated[Any, only(["direct"])] = None
    async_: Annotated[Off, Field(alias="async")] = None
    defer_loading: Off = None
    output_schema: Absent = None


class NamedTool(Strict):
    type: Literal["function"]
    name: str

    def for_chat(self) -> dict[str, Any]:
        """Return the choice as a chat has it."""
        return {"type": "function", "function": {"name": self.name}}


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]

    def for_chat(self) -> dict[str, Any]:
        """Return the choice as a chat has it."""
        tools = [tool.for_chat() for tool in self.tools]
        return {"type": self.type, "allowed_tools": {"mode": self.mode, "tools": tools}}


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
)


def chat_tools(tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    """Return the functions as a chat has them.

    Raises:
        ApiError: when two have one name.
    """
    check_names([tool.name for tool in tools], "tools.{}.name")
    names = set(Function.model_fields)
    return [{"type": "function", "function": tool.model_dump(include=names)} for tool in tools]


def chat_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    """Return the choice as a chat has it."""
    return choice.for_chat() if isinstance(choice, NamedTool | AllowedTools) else choice
