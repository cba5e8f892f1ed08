"""One answer on its way from tokens to text, with what is known of each token."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from llamahome.engine.outputs import TokenDelta
from llamahome.engine.sampling.grammar import Vocabulary
from llamahome.engine.sampling.logprobs import Logprob, TopLogprobs
from llamahome.engine.text.text_stream import TextStream
from llamahome.requests import SamplingParams


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
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        params: SamplingParams,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._echo = params.echo
        self._offset = len(params.echo or "")
        self._prompt_tokens: tuple[TokenText, ...] = ()
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
        if self._echo is not None:
            text, self._echo = self._echo, None
            self._prompt_tokens = self._described_prompt(delta.prompt_logprobs)
        if delta.token is not None:
            self._pending.append(delta)
            text += self._stream.push(delta.token)
        return text if delta.finish_reason is None else text + self._stream.flush()

    def take_tokens(self) -> tuple[TokenText, ...]:
        """The tokens of the text returned since the last call."""
        prompt, self._prompt_tokens = self._prompt_tokens, ()
        settled = [(start, self._pending.popleft()) for start in self._stream.take_settled()]
        if not self._detailed:
            return prompt
        described = [
            self._described(delta.token, self._offset + start, delta.logprob, delta.top_logprobs)
            for start, delta in settled
            if delta.token is not None
        ]
        return (*prompt, *described)

    def _described_prompt(self, logprobs: Sequence[Logprob]) -> tuple[TokenText, ...]:
        if not logprobs:
            return ()
        stream = TextStream(self._tokenizer)
        for token in self._prompt:
            stream.push(token)
        stream.flush()
        described = zip(self._prompt, stream.take_settled(), logprobs, strict=True)
        return tuple(self._described(token, at, *logprob) for token, at, logprob in described)

    def _described(
        self, token: int, offset: int, logprob: float | None, top: TopLogprobs
    ) -> TokenText:
        others = (TopToken(self._vocabulary.token_bytes(other), lp) for other, lp in top)
        return TokenText(token, self._vocabulary.token_bytes(token), offset, logprob, tuple(others))
