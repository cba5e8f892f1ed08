"""Request bodies of OpenAI's Responses API, and the chats that they ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve.http.bodies import checked_fields
from serve.http.errors import ApiError
from serve.http.fields import Absent, Empty, Off, Strict, only
from serve.http.protocol import ChatRequest
from serve.http.renamed import renamed
from serve.http.stateful.items import Item, Turns
from serve.http.stateful.tools import FunctionTool, ToolChoice, chat_choice, chat_tools
from serve.http.structured import PlainFormat
from serve.http.tools import MAX_TOOLS

# A client's names for the fields of a chat, and of the engine.
NAMES = {
    "messages": "input",
    "prompt": "input",
    "protected": "instructions",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
# Fields that a chat has under the same name.
SAME = (
    *("model", "temperature", "top_p", "top_logprobs", "stream", "parallel_tool_calls"),
    *("kv_budget", "kv_policy"),
)
LOGPROBS = "message.output_text.logprobs"


class SchemaFormat(Strict):
    """A JSON schema; answers always keep to it, `strict` or not."""

    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return the format as a chat has it."""
        return {
            "type": "json_schema",
            "json_schema": {"name": self.name, "schema": self.schema_, "strict": self.strict},
        }


class TextConfig(Strict):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, only("medium")] = None


class StreamOptions(Strict):
    include_obfuscation: Off = None


def _as_items(given: object) -> object:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class ResponsesBody(Strict):
    """POST /v1/responses."""

    model: str
    input: Annotated[list[Item], Field(min_length=1), BeforeValidator(_as_items)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextConfig | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None

    # ours
    kv_budget: float | None = None
    kv_policy: str | None = None

    access_programs: Absent = None
    background: Off = None
    background_options: Absent = None
    context_management: Empty = None
    conversation: Absent = None
    image: Absent = None
    max_tool_calls: Absent = None
    moderation: Absent = None
    prompt: Absent = None
    prompt_cache_options: Absent = None
    prompt_cache_retention: Absent = None
    reasoning: Annotated[Any, only({}, {"effort": "none"})] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    truncation: Annotated[Any, only("disabled")] = None

    def chat(self, turns: Turns) -> ChatRequest:
        """Return the chat that this response goes on with.

        Args:
            turns: the conversation with its input, without instructions, which hold for one
                response.

        Raises:
            ApiError: for a value that a chat does not take, by the client's name of its field.
        """
        leading = [] if self.instructions is None else [("system", self.instructions)]
        system = [{"role": role, "content": text} for role, text in leading]
        fields: dict[str, Any] = {name: getattr(self, name) for name in SAME}
        fields |= {
            "messages": [*system, *turns],
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.wants_logprobs,
            "response_format": self._format(),
            "tools": chat_tools(self.tools or []),
            "tool_choice": chat_choice(self.tool_choice),
        }
        try:
            return checked_fields(ChatRequest, fields)
        except ApiError as error:
            raise renamed(error, NAMES) from None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def _format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None:
            return None
        return form.for_chat() if isinstance(form, SchemaFormat) else form.model_dump()
