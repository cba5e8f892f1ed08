"""Text in, text out: the body of the plain endpoints."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from serve.http.errors import invalid_body
from serve.http.fields import Strict
from serve.http.protocol import ChatRequest
from serve.http.renamed import renamed

# A client's names for the fields of a chat, and of the engine.
NAMES = {"messages": "text", "prompt": "text"}


class PlainBody(Strict):
    """POST /api/v1/process and /api/v1/stream: a text that a chat's user says."""

    text: Annotated[str, Field(min_length=1)]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    def chat(self, model_id: str) -> ChatRequest:
        """Return the chat that this text begins.

        Raises:
            ApiError: for a value that a chat does not take.
        """
        fields: dict[str, Any] = self.model_dump(exclude={"text", "model"}, exclude_none=True)
        fields |= {"model": model_id, "messages": [{"role": "user", "content": self.text}]}
        try:
            return ChatRequest.model_validate(fields)
        except ValidationError as error:
            raise renamed(invalid_body(error), NAMES) from None
