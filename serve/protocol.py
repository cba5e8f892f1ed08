"""Request bodies of OpenAI's API, checked field by field.

Every field that OpenAI's own client sends is known here. A field whose feature does not exist here
accepts only the values that do not ask for it, and any other is refused by name: nothing that a
client asked for is dropped in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve.wire import GenerateRequest

# OpenAI's default for completions; a chat's is whatever the context has left.
COMPLETION_MAX_TOKENS = 16
MAX_STOPS = 4


def _only(*neutral: object) -> AfterValidator:
    """Accept null and `neutral`; anything else asks for what does not exist here."""

    def check(value: object) -> object:
        # bool is an int in Python: compare kinds too, or `n: true` would pass for 1.
        if value is None or any(value == n and type(value) is type(n) for n in neutral):
            return value
        allowed = " or ".join(repr(n) for n in neutral)
        raise PydanticCustomError(
            "unsupported",
            "not supported here; leave it out{allowed}",
            {"allowed": f" or send {allowed}" if allowed else ""},
        )

    return AfterValidator(check)


Absent = Annotated[Any, _only()]
Off = Annotated[Any, _only(False)]
Empty = Annotated[Any, _only([], {})]
Zero = Annotated[Any, _only(0, 0.0)]
One = Annotated[Any, _only(1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Message(_Strict):
    """One message; what an answer of this API carries besides its text may come back as null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Absent = None
    refusal: Absent = None
    audio: Absent = None
    annotations: Empty = None
    function_call: Absent = None
    tool_calls: Empty = None

    def for_template(self) -> dict[str, str]:
        # "developer" is OpenAI's newer word for the system role; chat templates know the older.
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": _text(self.content)}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Off = None


def _as_list(stop: object) -> object:
    if isinstance(stop, str):
        return [stop]
    return [] if stop is None else stop


Stop = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_list),
]


class _Generation(_Strict):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Stop = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    n: One = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Empty = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self) -> dict[str, Any]:
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stop": tuple(self.stop),
        }


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    audio: Absent = None
    function_call: Annotated[Any, _only("none")] = None
    functions: Empty = None
    logprobs: Off = None
    modalities: Annotated[Any, _only(["text"])] = None
    moderation: Absent = None
    parallel_tool_calls: Annotated[Any, _only(True, False)] = None
    prediction: Absent = None
    prompt_cache_options: Absent = None
    prompt_cache_retention: Absent = None
    reasoning_effort: Annotated[Any, _only("none")] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    service_tier: Annotated[Any, _only("auto", "default")] = None
    store: Off = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    tools: Empty = None
    top_logprobs: Zero = None
    verbosity: Annotated[Any, _only("medium")] = None
    web_search_options: Absent = None

    def generate_request(self, request_id: str) -> GenerateRequest:
        limit = self.max_tokens
        if self.max_completion_tokens is not None:
            limit = self.max_completion_tokens
        return GenerateRequest(
            request_id=request_id,
            messages=[message.for_template() for message in self.messages],
            max_tokens=limit,
            **self._sampling(),
        )


def _one_prompt(prompt: object) -> object:
    """OpenAI takes several prompts in one request; here a list holds one, or is token ids."""
    if not isinstance(prompt, list) or all(type(item) is int for item in prompt):
        return prompt
    if len(prompt) != 1:
        raise PydanticCustomError("unsupported", "one prompt per request; send them one by one")
    return prompt[0]


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]

    best_of: One = None
    echo: Off = None
    logprobs: Absent = None
    suffix: Annotated[Any, _only("")] = None

    def generate_request(self, request_id: str) -> GenerateRequest:
        return GenerateRequest(
            request_id=request_id,
            prompt=self.prompt,
            max_tokens=COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            **self._sampling(),
        )
