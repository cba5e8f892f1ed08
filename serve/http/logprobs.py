"""Log-probabilities as OpenAI's two endpoints have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from llamahome.requests import Token, TopToken

# JSON has no infinity; OpenAI's API gives this number for very unlikely tokens.
LEAST = -9999.0


def chat_logprobs(tokens: Sequence[Token]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            **_fields(token), top_logprobs=[TopLogprob(**_fields(top)) for top in token.top]
        )
        for token in tokens
    ]


def _fields(token: Token | TopToken) -> dict[str, Any]:
    data, logprob = token.data, _finite(token.logprob)
    return {"token": _text(data), "bytes": list(data), "logprob": logprob}


def completion_logprobs(tokens: Sequence[Token]) -> Logprobs | None:
    if not tokens:
        return None
    # `construct` does not validate: an echoed prompt's first token has null, against the type.
    return Logprobs.construct(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[
            None if token.logprob is None else _finite(token.logprob) for token in tokens
        ],
        tokens=[_text(token.data) for token in tokens],
        top_logprobs=[_top(token) for token in tokens],
    )


def _top(token: Token) -> dict[str, float] | None:
    """Return the likeliest tokens and the chosen one, which may not be among them."""
    if token.logprob is None:
        return None
    likeliest = {_text(top.data): _finite(top.logprob) for top in token.top}
    return {**likeliest, _text(token.data): _finite(token.logprob)}


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None else max(logprob, LEAST)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
