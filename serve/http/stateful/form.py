"""Answers of the Responses API in the types of the `openai` package."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import responses as types

from llamahome.requests import Token, Usage
from serve.http.calls import whole_calls
from serve.http.errors import ApiError
from serve.http.fields import Strict
from serve.http.logprobs import chat_logprobs
from serve.http.renamed import renamed
from serve.http.responses import engine_counts
from serve.http.stateful.body import NAMES, ResponsesBody
from serve.http.stateful.items import Status
from serve.wire import CallDelta, Delta


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class ResponseForm:
    """One response, which repeats what was asked for."""

    body: ResponsesBody
    stored: bool
    id: str = field(default_factory=lambda: _id("resp"))
    item_id: str = field(default_factory=lambda: _id("msg"))
    created: int = field(default_factory=lambda: int(time.time()))

    def begun(self) -> types.Response:
        """Return the response before its first token."""
        return self._response(status="in_progress", output=[])

    def finished(self, answer: Delta) -> types.Response:
        """Return the whole response."""
        cut = answer.finish_reason == "length"
        return self._response(
            status="incomplete" if cut else "completed",
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=self.output(answer),
            usage=_usage(answer.usage),
        )

    def failed(self, error: ApiError) -> types.Response:
        """Return the response that an error has ended."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        message = renamed(error, NAMES).message
        return self._response(status="failed", output=[], error={"code": code, "message": message})

    def output(self, answer: Delta) -> list[dict[str, Any]]:
        """Return an answer's items: its text, unless it is calls alone, and its calls."""
        calls = whole_calls(answer.calls)
        items = [self.call(call, "completed") for call in calls]
        if answer.text or not calls:
            items.insert(0, self.message(answer.text, answer.tokens, "completed"))
        items[-1]["status"] = last_status(answer)
        return items

    def message(self, text: str, tokens: Sequence[Token], status: Status) -> dict[str, Any]:
        """Return the message of the output."""
        return {**self.begun_message(), "status": status, "content": [part(text, tokens)]}

    def begun_message(self) -> dict[str, Any]:
        """Return the message before its first token."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }

    def call(self, call: CallDelta, status: Status) -> dict[str, Any]:
        """Return a call of a function."""
        assert call.id is not None
        return {
            "id": item_id_of(call.id),
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": status,
        }

    def _response(self, **own: Any) -> types.Response:
        body = self.body
        form = None if body.text is None else body.text.format
        repeated = {
            name: getattr(body, name)
            for name in ("instructions", "max_output_tokens", "metadata", "previous_response_id")
        }
        return types.Response.model_validate(
            {
                "id": self.id,
                "object": "response",
                "created_at": self.created,
                "model": body.model,
                **repeated,
                "temperature": 1.0 if body.temperature is None else body.temperature,
                "top_p": 1.0 if body.top_p is None else body.top_p,
                "top_logprobs": body.top_logprobs or 0,
                "text": {
                    "format": {"type": "text"} if form is None else form.model_dump(by_alias=True)
                },
                "tools": [_repeated(tool) for tool in body.tools or ()],
                "tool_choice": _repeated(body.tool_choice or "auto"),
                "parallel_tool_calls": body.parallel_tool_calls is not False,
                "truncation": "disabled",
                "background": False,
                "store": self.stored,
                **own,
            }
        )


def part(text: str, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return a part of a message: text, and its log-probabilities where they were asked for."""
    logprobs = [logprob.to_dict() for logprob in chat_logprobs(tokens)]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def last_status(answer: Delta) -> Status:
    """Return the status of an answer's last item, which may be cut."""
    return "incomplete" if answer.finish_reason == "length" else "completed"


def item_id_of(call_id: str) -> str:
    """Return the id of the item that holds a call."""
    return f"fc_{call_id.removeprefix('call_')}"


def _repeated(given: Strict | str) -> Any:
    return given if isinstance(given, str) else given.model_dump(by_alias=True, exclude_unset=True)


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "llamahome": engine_counts(usage),
    }
