"""Request bodies of Anthropic's Messages API, and the chats that they ask for."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from llamahome.requests import Grammar, SamplingParams
from serve.http.anthropic.content import MessageParam, Text, conversation, text_of
from serve.http.anthropic.tools import Choice, ToolParam, tools_of
from serve.http.fields import Absent, Strict, only
from serve.http.protocol import MAX_STOPS
from serve.http.tools import MAX_TOOLS
from serve.wire import GenerateRequest, TokenizeRequest

# A client's names for the fields of the engine.
NAMES = {"stop": "stop_sequences", "prompt": "messages", "protected": "messages"}
SAMPLED = ("temperature", "top_p", "top_k")


class Metadata(Strict):
    user_id: str | None = None


class SchemaFormat(Strict):
    """A JSON schema that an answer keeps to."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]

    def grammar(self) -> Grammar:
        """Return the grammar of the answer."""
        return Grammar("json", json.dumps(self.schema_), "output_config.format")


class OutputConfig(Strict):
    format: SchemaFormat | None = None
    effort: Absent = None


class _Prompt(Strict):
    """The fields that both endpoints share."""

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    system: Text | None = None
    cache_control: dict[str, Any] | None = None
    thinking: Annotated[Any, only({"type": "disabled"})] = None
    tool_choice: Choice | None = None
    tools: Annotated[list[ToolParam], Field(max_length=MAX_TOOLS)] | None = None
    output_config: OutputConfig | None = None
    speed: Annotated[Any, only("standard")] = None
    thread: Absent = None

    @property
    def continues(self) -> bool:
        """Whether the answer goes on from the last message, an assistant's."""
        return self.messages[-1].role == "assistant"

    def for_template(self) -> list[dict[str, Any]]:
        """Return the conversation as chat templates take it."""
        turns = conversation(self.messages)
        if self.system is None:
            return turns
        return [{"role": "system", "content": text_of(self.system)}, *turns]


class CountBody(_Prompt):
    """POST /v1/messages/count_tokens."""

    def wire_request(self, request_id: str) -> TokenizeRequest:
        """Return the request for a replica; raise ApiError as a message's does."""
        return TokenizeRequest(
            request_id=request_id,
            messages=self.for_template(),
            tools=tools_of(self.tools or (), self.tool_choice),
            add_generation_prompt=not self.continues,
            continue_final_message=self.continues,
        )


class MessagesBody(_Prompt):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)
    ] = Field(default_factory=list)
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Annotated[Any, only("auto", "standard_only")] = None
    container: Absent = None
    diagnostics: Absent = None
    inference_geo: Absent = None

    def wire_request(self, request_id: str, adapter: str | None) -> GenerateRequest:
        """Return the request for a replica.

        Raises:
            RequestError: for a value out of its range.
            ApiError: for messages or tools that do not fit together.
        """
        given = {name: getattr(self, name) for name in SAMPLED if getattr(self, name) is not None}
        form = None if self.output_config is None else self.output_config.format
        params = SamplingParams(
            **{"temperature": 1.0, **given},
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences),
            adapter=adapter,
            grammar=None if form is None else form.grammar(),
        )
        return GenerateRequest(
            request_id=request_id,
            params=params,
            messages=self.for_template(),
            tools=tools_of(self.tools or (), self.tool_choice),
            add_generation_prompt=not self.continues,
            continue_final_message=self.continues,
            left_out=frozenset(name for name in SAMPLED if name not in given),
        )
