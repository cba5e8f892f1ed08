"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.bodies import parse
from serve.http.errors import ApiError, invalid_request
from serve.http.fields import Strict
from serve.http.messages import Message, for_template
from serve.http.routes.route import Route
from serve.http.tools import MAX_TOOLS, Tool, tools_of
from serve.wire import DetokenizeRequest, TokenizeRequest


class TokenizeBody(Strict):
    """POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    def wire_request(self, request_id: str) -> TokenizeRequest:
        """Return the request for a replica.

        Raises:
            ApiError: for both or neither of `prompt` and `messages`, or a field of the other one.
        """
        if (self.prompt is None) == (self.messages is None):
            raise invalid_request("prompt: send it or messages, and not both", "prompt")
        if self.messages is None:
            self._refuse(
                *("add_generation_prompt", "continue_final_message"),
                *("tools", "chat_template_kwargs"),
            )
            return TokenizeRequest(
                request_id=request_id,
                prompt=self.prompt,
                add_special_tokens=self.add_special_tokens is not False,
            )
        if self.add_special_tokens:  # the template writes them
            raise invalid_request(
                "add_special_tokens: a chat template has its own; leave it out",
                "add_special_tokens",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid_request(
                "continue_final_message: it excludes add_generation_prompt: true",
                "continue_final_message",
            )
        return TokenizeRequest(
            request_id=request_id,
            messages=for_template(self.messages),
            tools=tools_of(self.tools, None, parallel=None),
            template_options=self.chat_template_kwargs,
            add_generation_prompt=(
                self.add_generation_prompt is not False and not self.continue_final_message
            ),
            continue_final_message=self.continue_final_message,
        )

    def _refuse(self, *names: str) -> None:
        for name in names:
            if getattr(self, name):
                raise invalid_request(f"{name}: it needs messages", name)


class DetokenizeBody(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class TokenizeAnswer(TypedDict):
    """Tokens of a text or a chat."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(TypedDict):
    """Text of tokens."""

    prompt: str


def routes(answering: Answering) -> list[Route]:
    """Return the routes of the tokenizer."""

    async def tokenize(request: Request) -> Response:
        body = await parse(request, TokenizeBody)
        _check(body.model)
        asked = body.wire_request(_id("tok"))
        answer = await answering.whole(replace(asked, adapter=_adapter(body.model)))
        result = answer.tokenized
        if result is None:
            raise ApiError(500, "the engine replica failed", code="engine")
        return JSONResponse(
            TokenizeAnswer(
                count=len(result.ids),
                max_model_len=result.max_length,
                tokens=list(result.ids),
                token_strs=list(result.pieces) if body.return_token_strs else None,
            )
        )

    async def detokenize(request: Request) -> Response:
        body = await parse(request, DetokenizeBody)
        _check(body.model)
        answer = await answering.whole(
            DetokenizeRequest(
                request_id=_id("detok"), tokens=body.tokens, adapter=_adapter(body.model)
            )
        )
        return JSONResponse(DetokenizeAnswer(prompt=answer.text))

    def _check(model_id: str | None) -> None:
        if model_id is not None:
            answering.check_model(model_id)

    def _adapter(model_id: str | None) -> str | None:
        return None if model_id is None else answering.adapter(model_id)

    return [
        Route("/tokenize", tokenize, "POST", TokenizeBody, TokenizeAnswer),
        Route("/detokenize", detokenize, "POST", DetokenizeBody, DetokenizeAnswer),
    ]


def _id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"
