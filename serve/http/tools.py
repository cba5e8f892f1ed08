"""Request fields for functions that an answer may call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llamahome.requests import Tools
from serve.http.errors import invalid_request
from serve.http.fields import Strict

MAX_TOOLS = 128


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "its type must be 'object'")
    return schema


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Parameters = Annotated[dict[str, Any], AfterValidator(_of_an_object)]


class Function(Strict):
    """A function; arguments always keep to its schema, `strict` or not."""

    name: Name
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


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
    check_names(names, "tools.{}.function.name")
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


def check_names(names: Sequence[str], field: str) -> None:
    """Refuse a second tool of one name.

    Args:
        field: the client's field of a tool's name, with {} for the tool's number.

    Raises:
        ApiError: when two tools have one name.
    """
    for name, count in Counter(names).items():
        if count > 1:
            at = field.format(len(names) - 1 - names[::-1].index(name))
            raise invalid_request(f"{at}: an earlier tool has the same name", at)


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
