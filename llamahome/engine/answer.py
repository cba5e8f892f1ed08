"""One answer on its way from tokens to text, with what is known of each token."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tokenizers import Tokenizer

from llamahome.engine.engine import TokenDelta
from llamahome.engine.grammar import Vocabulary
from llamahome.engine.logprobs import TopLogprobs
from llamahome.engine.params import SamplingParams
from llamahome.engine.text import TextStream


@dataclass(frozen=True)
class TopToken:
    """A token that might have been chosen."""

    data: bytes
    logprob: float


@dataclass(frozen=True)
class TokenText:
    """A token with its log-probability under the model.

    Attributes:
        token: its id.
        data: its bytes; a character may be spread over several tokens.
        offset: where in the text it begins, in characters.
        logprob: None for the first token of a prompt, which nothing predicts.
        top: the likeliest tokens in its place, the likeliest first.
    """

    token: int
    data: bytes
    offset: int
    logprob: float | None
    top: tuple[TopToken, ...]


class Answer:
    """Text of one request, and its tokens where log-probabilities are asked for."""

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: Vocabulary, params: SamplingParams
    ) -> None:
        self._stream = TextStream(tokenizer, params.stop, min_tokens=params.min_tokens)
        self._vocabulary = vocabulary
        self._detailed = params.logprobs is not None
        self._pending: deque[TokenDelta] = deque()

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def push(self, delta: TokenDelta) -> str:
        """The text that a delta makes certain; raises TextError."""
        text = ""
        if delta.token is not None:
            self._pending.append(delta)
            text = self._stream.push(delta.token)
        return text if delta.finish_reason is None else text + self._stream.flush()

    def take_tokens(self) -> tuple[TokenText, ...]:
        """The tokens of the text returned since the last call."""
        settled = [(start, self._pending.popleft()) for start in self._stream.take_settled()]
        if not self._detailed:
            return ()
        return tuple(self._described(delta, start) for start, delta in settled)

    def _described(self, delta: TokenDelta, offset: int) -> TokenText:
        assert delta.token is not None
        return TokenText(
            delta.token,
            self._vocabulary.token_bytes(delta.token),
            offset,
            delta.logprob,
            describe_top(self._vocabulary, delta.top_logprobs),
        )


def describe_top(vocabulary: Vocabulary, top: TopLogprobs) -> tuple[TopToken, ...]:
    return tuple(TopToken(vocabulary.token_bytes(token), logprob) for token, logprob in top)
