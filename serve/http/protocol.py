"""Request bodies of OpenAI's API, checked field by field.

Every field that OpenAI's own client sends is known here. A field whose feature does not exist here
accepts only the values that do not ask for it, and any other is refused by name: nothing that a
client asked for is dropped in silence. Fields beyond OpenAI's API have vLLM's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from llamahome.requests import SamplingParams
from serve.http.fields import Absent, Empty, Off, Strict, only
from serve.http.messages import Message, for_template
from serve.http.structured import JsonValue, ResponseFormat, StructuredOutputs, grammar_of
from serve.http.tools import MAX_TOOLS, Tool, ToolChoice, tools_of
from serve.wire import EmbedRequest, GenerateRequest

# OpenAI's default for completions; a chat's is whatever the context has left.
COMPLETION_MAX_TOKENS = 16
MAX_STOPS = 4
MAX_CHOICES = 128
MAX_INPUTS = 2048
# Fields of these names are given by each endpoint in its own way.
_SHARED = {field.name for field in fields(SamplingParams)} - {"max_tokens", "logprobs", "echo"}


class StreamOptions(Strict):
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


class _Generation(Strict):
    """The fields that both endpoints share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop = Field(default_factory=list)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    priority: int = 0
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonValue | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None

    # ours
    kv_budget: float | None = None
    kv_policy: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def _left_out(self) -> frozenset[str]:
        names = _SHARED & set(type(self).model_fields)
        return frozenset(name for name in names if getattr(self, name) is None)

    def _params(self, **own: Any) -> SamplingParams:
        """Return the fields that are sampling parameters, by their names, together with `own`."""
        given = {name: getattr(self, name) for name in _SHARED & set(type(self).model_fields)}
        sampling = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None
        }
        if self.top_k == -1:  # vLLM's other word for all tokens
            sampling["top_k"] = 0
        grammar = grammar_of(
            response_format=self.response_format,
            structured_outputs=self.structured_outputs,
            guided_json=self.guided_json,
            guided_regex=self.guided_regex,
            guided_choice=self.guided_choice,
        )
        # OpenAI's API samples unless it is asked not to.
        return SamplingParams(**{"temperature": 1.0, **sampling, "grammar": grammar, **own})


def _fan_out(requests: Sequence[GenerateRequest], count: int) -> list[GenerateRequest]:
    """Return `count` copies of each request, with ids and seeds of their own.

    A single copy stays as it is.
    """
    copies = [(request, i) for request in requests for i in range(count)]
    if len(copies) == 1:
        return list(requests)
    return [
        replace(
            request,
            request_id=f"{request.request_id}-{index}",
            params=_with_seed(request.params, i),
        )
        for index, (request, i) in enumerate(copies)
    ]


def _with_seed(params: SamplingParams, offset: int) -> SamplingParams:
    if params.seed is None:
        return params
    seed = (params.seed + offset + 2**63) % 2**64 - 2**63  # the one after the largest is the least
    return replace(params, seed=seed)


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None

    # vLLM's
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    audio: Absent = None
    function_call: Annotated[Any, only("none")] = None
    functions: Empty = None
    logprobs: bool | None = None
    modalities: Annotated[Any, only(["text"])] = None
    moderation: Absent = None
    parallel_tool_calls: bool | None = None
    prediction: Absent = None
    prompt_cache_options: Absent = None
    prompt_cache_retention: Absent = None
    reasoning_effort: Annotated[Any, only("none")] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    store: Off = None
    tool_choice: ToolChoice | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Absent = None

    # ours
    lens: bool = False

    @field_validator("lens")
    @classmethod
    def _of_a_stream(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("stream"):
            raise PydanticCustomError("invalid_value", "it needs stream: true")
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _of_an_answer(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise PydanticCustomError("invalid_value", "it excludes add_generation_prompt: true")
        messages = info.data.get("messages")
        if value and messages and messages[-1].role != "assistant":
            raise PydanticCustomError(
                "invalid_value", "the last message must be the assistant's, which it continues"
            )
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("invalid_value", "it needs logprobs: true")
        return value

    def generate_requests(self, request_id: str, adapter: str | None) -> list[GenerateRequest]:
        """Return one request for each choice of the answer."""
        limit = self.max_completion_tokens
        if limit is None:
            limit = self.max_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        request = GenerateRequest(
            request_id=request_id,
            params=self._params(adapter=adapter, max_tokens=limit, logprobs=logprobs),
            messages=for_template(self.messages),
            tools=tools_of(self.tools, self.tool_choice, parallel=self.parallel_tool_calls),
            template_options=self.chat_template_kwargs,
            add_generation_prompt=(
                not self.continue_final_message
                if self.add_generation_prompt is None
                else self.add_generation_prompt
            ),
            continue_final_message=self.continue_final_message,
            left_out=self._left_out | ({"max_tokens"} if limit is None else set()),
        )
        return _fan_out([request], self.choices_per_prompt)


def _as_prompts(prompt: object) -> object:
    """Wrap a single prompt: OpenAI's API takes a text, token ids, or a list of either."""
    if not isinstance(prompt, list) or all(type(item) is int for item in prompt):
        return [prompt]
    return prompt


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts)]

    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: Annotated[Any, only("")] = None

    @field_validator("best_of")
    @classmethod
    def _no_choosing(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value not in (None, info.data.get("n") or 1):
            raise PydanticCustomError("unsupported", "not supported here; leave it out or send n")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_too_many(
        cls, value: list[str | list[int]], info: ValidationInfo
    ) -> list[str | list[int]]:
        if len(value) * (info.data.get("n") or 1) > MAX_CHOICES:
            raise PydanticCustomError(
                "too_many", f"prompts times n must not exceed {MAX_CHOICES}; send them apart"
            )
        return value

    def generate_requests(self, request_id: str, adapter: str | None) -> list[GenerateRequest]:
        """Return one request for each choice: those of the first prompt, of the second, ..."""
        limit = COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        params = self._params(
            adapter=adapter,
            max_tokens=limit,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )
        requests = [
            GenerateRequest(
                request_id=request_id,
                params=params,
                prompt=prompt,
                left_out=self._left_out,
                echo=bool(self.echo),
            )
            for prompt in self.prompt
        ]
        return _fan_out(requests, self.choices_per_prompt)


class EmbeddingRequest(Strict):
    """POST /v1/embeddings."""

    model: str
    input: Annotated[
        list[str | list[int]], Field(max_length=MAX_INPUTS), BeforeValidator(_as_prompts)
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Absent = None
    user: str | None = None

    def embed_requests(self, request_id: str, adapter: str | None) -> list[EmbedRequest]:
        return [
            EmbedRequest(request_id=f"{request_id}-{index}", prompt=prompt, adapter=adapter)
            for index, prompt in enumerate(self.input)
        ]
