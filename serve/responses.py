"""Answers in the types of the `openai` package, whole and as chunks of a stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice as ChatChoice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from serve.wire import Delta, Usage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str

    def fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ChatFormat:
    """POST /v1/chat/completions."""

    head: Head

    def whole(self, answer: Delta) -> ChatCompletion:
        message = ChatCompletionMessage(role="assistant", content=answer.text, refusal=None)
        choice = ChatChoice(
            index=0, message=message, finish_reason=answer.finish_reason or "stop", logprobs=None
        )
        return ChatCompletion(
            **self.head.fields(),
            object="chat.completion",
            choices=[choice],
            usage=usage_of(answer.usage),
        )

    def opening(self) -> list[BaseModel]:
        """Chunks before the first text."""
        return [self._chunk(ChoiceDelta(role="assistant", content=""))]

    def chunk(self, delta: Delta) -> BaseModel:
        """A chunk of text; the last one has the finish reason."""
        text = ChoiceDelta(content=delta.text) if delta.text else ChoiceDelta()
        return self._chunk(text, delta.finish_reason)

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The chunk after the last, for clients that asked for usage."""
        return ChatCompletionChunk(
            **self.head.fields(),
            object="chat.completion.chunk",
            choices=[],
            usage=usage_of(usage),
        )

    def _chunk(self, delta: ChoiceDelta, reason: FinishReason | None = None) -> BaseModel:
        return ChatCompletionChunk(
            **self.head.fields(),
            object="chat.completion.chunk",
            choices=[ChunkChoice(index=0, delta=delta, finish_reason=reason, logprobs=None)],
        )


@dataclass(frozen=True)
class CompletionFormat:
    """POST /v1/completions; whole answers and chunks have one type there."""

    head: Head

    def whole(self, answer: Delta) -> Completion:
        return self._completion(
            [_completion_choice(answer.text, answer.finish_reason or "stop")], answer.usage
        )

    def opening(self) -> list[BaseModel]:
        return []

    def chunk(self, delta: Delta) -> BaseModel:
        return self._completion([_completion_choice(delta.text, delta.finish_reason)])

    def usage_chunk(self, usage: Usage) -> BaseModel:
        return self._completion([], usage)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> Completion:
        return Completion(
            **self.head.fields(),
            object="text_completion",
            choices=choices,
            usage=usage_of(usage),
        )


Format = ChatFormat | CompletionFormat


def usage_of(usage: Usage | None) -> CompletionUsage | None:
    """OpenAI's counts; `llamahome` adds what the KV budget kept, evicted and saved."""
    if usage is None:
        return None
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "llamahome": {
                "kept_tokens": usage.kept_tokens,
                "evicted_tokens": usage.evicted_tokens,
                "kv_bytes": usage.kv_bytes,
                "kv_bytes_dense": usage.kv_bytes_dense,
            },
        }
    )


def _completion_choice(text: str, reason: FinishReason | None) -> CompletionChoice:
    # `construct` does not validate: chunks have no reason yet, which the type does not foresee.
    return CompletionChoice.construct(index=0, text=text, finish_reason=reason, logprobs=None)


def event(data: BaseModel) -> str:
    """One server-sent event; null fields that were set stay, as clients expect `finish_reason`."""
    return f"data: {data.to_json(indent=None)}\n\n"
