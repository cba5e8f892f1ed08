"""Request bodies of Anthropic's Messages API, and the chats that they ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llamahome.requests import SamplingParams
from serve.http.fields import Absent, Empty, Strict, only
from serve.http.protocol import MAX_STOPS
from serve.wire import GenerateRequest, TokenizeRequest

# A client's names for the fields of the engine.
NAMES = {"stop": "stop_sequences", "prompt": "messages", "protected": "messages"}
SAMPLED = ("temperature", "top_p", "top_k")


class TextBlock(Strict):
    """A block of text; prompts are cached here without being asked to."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: Empty = None


Content = str | list[TextBlock]


class MessageParam(Strict):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Content

    def for_template(self) -> dict[str, Any]:
        """Return the turn as chat templates take it."""
        return {"role": self.role, "content": text_of(self.content)}


class Metadata(Strict):
    user_id: str | None = None


class _Prompt(Strict):
    """The fields that both endpoints share."""

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    system: Content | None = None
    cache_control: dict[str, Any] | None = None
    thinking: Annotated[Any, only({"type": "disabled"})] = None
    tool_choice: Annotated[Any, only({"type": "auto"}, {"type": "none"})] = None
    tools: Empty = None
    output_config: Empty = None
    speed: Annotated[Any, only("standard")] = None

    @property
    def continues(self) -> bool:
        """Whether the answer goes on from the last message, an assistant's."""
        return self.messages[-1].role == "assistant"

    def for_template(self) -> list[dict[str, Any]]:
        """Return the conversation as chat templates take it."""
        turns = [message.for_template() for message in self.messages]
        if self.system is None:
            return turns
        return [{"role": "system", "content": text_of(self.system)}, *turns]


class CountBody(_Prompt):
    """POST /v1/messages/count_tokens."""

    def wire_request(self, request_id: str) -> TokenizeRequest:
        """Return the request for a replica."""
        return TokenizeRequest(
            request_id=request_id,
            messages=self.for_template(),
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
        """
        given = {name: getattr(self, name) for name in SAMPLED if getattr(self, name) is not None}
        params = SamplingParams(
            **{"temperature": 1.0, **given},
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences),
            adapter=adapter,
        )
        return GenerateRequest(
            request_id=request_id,
            params=params,
            messages=self.for_template(),
            add_generation_prompt=not self.continues,
            continue_final_message=self.continues,
            left_out=frozenset(name for name in SAMPLED if name not in given),
        )


def text_of(content: Content) -> str:
    """Return the text of a message's content."""
    return content if isinstance(content, str) else "".join(block.text for block in content)
