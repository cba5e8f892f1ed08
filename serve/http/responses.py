"""Answers in the types of the `openai` package, whole and as chunks of a stream."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice as ChatChoice
from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import (
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import (
    Function as CalledFunction,
)
from typing_extensions import TypedDict

from llamahome.lens import LensFrame
from llamahome.requests import Usage
from serve.http.calls import whole_calls
from serve.http.logprobs import chat_logprobs, completion_logprobs
from serve.wire import CallDelta, Delta


class Head(TypedDict):
    """The fields that every part of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


@dataclass(frozen=True)
class ChatFormat:
    """POST /v1/chat/completions."""

    head: Head

    def whole(self, answers: Sequence[Delta], usage: Usage | None) -> ChatCompletion:
        return ChatCompletion(
            **self.head,
            object="chat.completion",
            choices=[_chat_choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage_of(usage),
        )

    def opening(self, choices: int) -> list[BaseModel]:
        """Return the chunks before the first text."""
        role = ChoiceDelta(role="assistant", content="")
        return [
            self._chunk(ChunkChoice(index=index, delta=role, finish_reason=None, logprobs=None))
            for index in range(choices)
        ]

    def chunk(self, index: int, delta: Delta) -> BaseModel:
        """Return a chunk of one choice's text; its last one has the finish reason."""
        content = chat_logprobs(delta.tokens)
        choice = ChunkChoice(
            index=index,
            delta=_chat_delta(delta),
            finish_reason=delta.finish_reason,
            logprobs=ChunkLogprobs(content=content, refusal=None) if content else None,
        )
        own = {} if delta.lens is None else {"lens": lens_of(delta.lens)}
        return self._chunk(choice, **own)

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """Return the chunk after the last, for clients that asked for usage."""
        return ChatCompletionChunk(
            **self.head,
            object="chat.completion.chunk",
            choices=[],
            usage=usage_of(usage),
        )

    def _chunk(self, choice: ChunkChoice, **own: Any) -> BaseModel:
        kind: Any = "chat.completion.chunk"
        return ChatCompletionChunk(**self.head, object=kind, choices=[choice], **own)


@dataclass(frozen=True)
class CompletionFormat:
    """POST /v1/completions; whole answers and chunks have one type there."""

    head: Head

    def whole(self, answers: Sequence[Delta], usage: Usage | None) -> Completion:
        return self._completion(
            [_completion_choice(index, answer) for index, answer in enumerate(answers)], usage
        )

    def opening(self, choices: int) -> list[BaseModel]:
        return []

    def chunk(self, index: int, delta: Delta) -> BaseModel:
        return self._completion([_completion_choice(index, delta)])

    def usage_chunk(self, usage: Usage) -> BaseModel:
        return self._completion([], usage)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> Completion:
        return Completion(
            **self.head,
            object="text_completion",
            choices=choices,
            usage=usage_of(usage),
        )


Format = ChatFormat | CompletionFormat


def usage_of(usage: Usage | None) -> CompletionUsage | None:
    """Convert usage to OpenAI's counts; `llamahome` adds what the KV budget kept and evicted.

    Tokens from a prefix snapshot are OpenAI's cached tokens.
    """
    if usage is None:
        return None
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "llamahome": engine_counts(usage),
        }
    )


def lens_of(frame: LensFrame) -> dict[str, Any]:
    """Return a frame of the memory lens as JSON takes it; its bits become base64."""
    return {**vars(frame), "kept": base64.b64encode(frame.kept).decode()}


def engine_counts(usage: Usage) -> dict[str, int]:
    """Return what the KV budget kept and evicted, which no other API has a field for."""
    names = ("kept_tokens", "evicted_tokens", "peak_tokens", "kv_bytes", "kv_bytes_dense")
    return {name: getattr(usage, name) for name in names}


def _chat_choice(index: int, answer: Delta) -> ChatChoice:
    content = chat_logprobs(answer.tokens)
    message = ChatCompletionMessage(role="assistant", content=answer.text, refusal=None)
    if answer.calls:
        message.content = answer.text or None
        message.tool_calls = [_tool_call(call) for call in whole_calls(answer.calls)]
    return ChatChoice(
        index=index,
        message=message,
        finish_reason=answer.finish_reason or "stop",
        logprobs=ChoiceLogprobs(content=content, refusal=None) if content else None,
    )


def _tool_call(call: CallDelta) -> ChatCompletionMessageFunctionToolCall:
    return ChatCompletionMessageFunctionToolCall(
        id=call.id or "",
        type="function",
        function=CalledFunction(name=call.name or "", arguments=call.arguments),
    )


def _chat_delta(delta: Delta) -> ChoiceDelta:
    if delta.calls:
        return ChoiceDelta(tool_calls=[_tool_call_delta(call) for call in delta.calls])
    return ChoiceDelta(content=delta.text) if delta.text else ChoiceDelta()


def _tool_call_delta(call: CallDelta) -> ChoiceDeltaToolCall:
    if call.id is None:
        function = ChoiceDeltaToolCallFunction(arguments=call.arguments)
        return ChoiceDeltaToolCall(index=call.index, function=function)
    function = ChoiceDeltaToolCallFunction(name=call.name, arguments=call.arguments)
    return ChoiceDeltaToolCall(index=call.index, id=call.id, type="function", function=function)


def _completion_choice(index: int, delta: Delta) -> CompletionChoice:
    # `construct` does not validate: chunks have no finish reason yet, against the type.
    return CompletionChoice.construct(
        index=index,
        text=delta.text,
        finish_reason=delta.finish_reason,
        logprobs=completion_logprobs(delta.tokens),
    )


def event(data: BaseModel) -> str:
    """Encode a server-sent event; nulls that were set stay: clients expect `finish_reason`."""
    return f"data: {data.to_json(indent=None)}\n\n"


class Embedding(TypedDict):
    """One text's vector; OpenAI's own type has no base64."""

    object: Literal["embedding"]
    index: int
    embedding: str | list[float]


class EmbeddingList(TypedDict):
    """The vectors of texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


def embeddings_of(deltas: Sequence[Delta], model: str, encoding: str) -> EmbeddingList:
    """Return the body of an answer of /v1/embeddings."""
    tokens = sum(delta.usage.prompt_tokens for delta in deltas if delta.usage is not None)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(delta.embedding or b"", encoding),
            }
            for index, delta in enumerate(deltas)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _encoded(embedding: bytes, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(embedding).decode()
    return list(struct.unpack(f"<{len(embedding) // 4}f", embedding))
