"""Request fields for functions that an answer may call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llamahome.requests import Tools
from serve.http.errors import invalid_request
from serve.http.fields import Strict

MAX_TOOLS = 128


class Function(Strict):
    """A function; arguments always keep to its schema, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and value.get("type", "object") != "object":
            raise PydanticCustomError("invalid_value", "its type must be 'object'")
        return value


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return the tool without `strict`, which is no business of the model's."""
        return self.model_dump(exclude={"function": {"strict"}}, exclude_none=True)


class FunctionName(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedChoice, Field(discriminator="type")]
)


def tools_of(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, *, parallel: bool | None
) -> Tools | None:
    """Return what an answer may call; None for nothing.

    Raises:
        ApiError: when the choice names a function that is not there, or two have one name.
    """
    names = [tool.function.name for tool in tools or ()]
    for name, count in Counter(names).items():
        if count > 1:
            at = len(names) - 1 - names[::-1].index(name)
            field = f"tools.{at}.function.name"
            raise invalid_request(f"{field}: an earlier tool has the same name", field)
    wanted, required = _chosen(names, choice)
    if any(name not in names for name in wanted):
        reason = "it names a function that is not in tools"
        raise invalid_request(f"tool_choice: {reason}", "tool_choice")
    if required and not names:
        reason = "an answer that must call a function needs tools"
        raise invalid_request(f"tool_choice: {reason}", "tool_choice")
    if not wanted:
        return None
    return Tools(
        offered=[tool.for_template() for tool in tools or ()],
        callable=tuple(wanted),
        required=required,
        # A choice by name asks for one call.
        parallel=parallel is not False and not isinstance(choice, NamedTool),
    )


def _chosen(names: list[str], choice: ToolChoice | None) -> tuple[list[str], bool]:
    """Return the names of the functions that may be called, and whether one must be."""
    match choice:
        case "none":
            return [], False
        case "auto" | None:
            return names, False
        case "required":
            return names, True
        case NamedTool():
            return [choice.function.name], True
        case AllowedChoice():
            allowed = choice.allowed_tools
            chosen = dict.fromkeys(tool.function.name for tool in allowed.tools)
            return list(chosen), allowed.mode == "required"
