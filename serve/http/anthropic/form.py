"""Answers in the shapes of Anthropic's Messages API, whole and as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from llamahome.requests import Usage
from serve.http.anthropic.body import NAMES
from serve.http.errors import ApiError
from serve.http.renamed import renamed
from serve.wire import Delta


def message(request_id: str, model: str, answer: Delta) -> dict[str, Any]:
    """Return a whole answer."""
    content = [{"type": "text", "text": answer.text, "citations": None}]
    usage = _input_usage(answer.usage) | {"output_tokens": _output_tokens(answer.usage)}
    return _begun(request_id, model, content, usage) | _ending(answer)


async def events(
    request_id: str, model: str, deltas: AsyncGenerator[Delta, None]
) -> AsyncIterator[str]:
    """Yield an answer as server-sent events, in the order of Anthropic's API.

    The engine counts the prompt's tokens when an answer ends, so `message_start` says 0 of them,
    and `message_delta` has all counts.
    """
    begun = _begun(request_id, model, [], {"input_tokens": 0, "output_tokens": 0})
    yield _event("message_start", message=begun | {"stop_reason": None, "stop_sequence": None})
    block = {"type": "text", "text": "", "citations": None}
    yield _event("content_block_start", index=0, content_block=block)
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                if delta.text:
                    part = {"type": "text_delta", "text": delta.text}
                    yield _event("content_block_delta", index=0, delta=part)
                if delta.finish_reason is not None:
                    yield _event("content_block_stop", index=0)
                    usage = _input_usage(delta.usage)
                    usage["output_tokens"] = _output_tokens(delta.usage)
                    yield _event("message_delta", delta=_ending(delta), usage=usage)
        except ApiError as error:
            yield f"event: error\ndata: {json.dumps(renamed(error, NAMES).anthropic())}\n\n"
            return
    yield _event("message_stop")


def _begun(
    request_id: str, model: str, content: list[dict[str, Any]], usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": request_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "usage": usage,
    }


def _ending(answer: Delta) -> dict[str, str | None]:
    """Say why an answer ended."""
    if answer.stop_text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_text}
    reason = "max_tokens" if answer.finish_reason == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}


def _input_usage(usage: Usage | None) -> dict[str, int]:
    """Count the prompt's tokens: `input_tokens` leaves out those that a snapshot saved."""
    if usage is None:
        return {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _output_tokens(usage: Usage | None) -> int:
    return 0 if usage is None else usage.completion_tokens


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"
