"""Text that one step added to one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamahome.engine.sampling.logprobs import Logprob
from llamahome.lens import LensFrame
from llamahome.requests import FinishReason, Token, Usage


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """Text that one step added to one answer. `finish_reason` and `usage` are set on its last.

    `tokens` are the tokens of the text, where log-probabilities are asked for. Text that may begin
    a stop text is held back, and its tokens with it. `embedding` is the result of
    `submit_embedding`. `stop_text` is the stop text that ended the answer, where one did.
    `error_field` is the request's field that is to blame for an error. `ids` are the answer's new
    tokens, and `held` is what `Progress` says: with them another engine can go on. `lens` is there
    now and then, and on the last, where the request asked for it.
    """

    request_id: str
    text: str
    token_count: int
    tokens: tuple[Token, ...] = ()
    ids: tuple[int, ...] = ()
    held: tuple[Logprob, ...] = ()
    embedding: Sequence[float] | None = None
    lens: LensFrame | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    stop_text: str | None = None
    error_field: str | None = None
