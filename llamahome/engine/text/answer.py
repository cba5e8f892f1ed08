"""An answer on its way from tokens to text, with the log-probabilities of its tokens."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from llamahome.engine.request import TokenDelta
from llamahome.engine.sampling.grammar import Vocabulary
from llamahome.engine.sampling.logprobs import Logprob, TopLogprobs
from llamahome.engine.text.text_stream import TextStream
from llamahome.lens import LensFrame
from llamahome.requests import Progress, SamplingParams, Token, TopToken


class Answer:
    """The text of one request, and its tokens where log-probabilities are asked for."""

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
        self._prompt_tokens: tuple[Token, ...] = ()
        self._stream = TextStream(
            tokenizer, params.stop, before=prompt, min_tokens=params.min_tokens
        )
        self._vocabulary = vocabulary
        self._detailed = params.logprobs is not None
        self._pending: deque[TokenDelta] = deque()
        self._shown = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    @property
    def stop_text(self) -> str | None:
        """The stop text that ended the answer, where one did."""
        return self._stream.stop_text

    @property
    def held(self) -> tuple[Logprob, ...]:
        """Return the log-probabilities of tokens whose text is held back, where asked for."""
        if not self._detailed:
            return ()
        return tuple((delta.logprob, delta.top_logprobs) for delta in self._pending)

    def replay(self, progress: Progress) -> None:
        """Take in what another `Answer` has returned, and what it held back.

        Raises:
            TextError: when the tokenizer fails.
        """
        self._echo = None
        returned: list[Logprob] = [(None, ())] * (len(progress.tokens) - len(progress.held))
        for token, (logprob, top) in zip(progress.tokens, [*returned, *progress.held], strict=True):
            delta = TokenDelta(request_id="", token=token, logprob=logprob, top_logprobs=top)
            self._pending.append(delta)
            self._stream.push(token)
        for _ in self._stream.take_starts():
            self._pending.popleft()

    def push(self, delta: TokenDelta) -> str:
        """Return the text that a delta makes certain.

        Raises:
            TextError: when the tokenizer fails.
        """
        text = ""
        if self._echo is not None:
            text, self._echo = self._echo, None
            self._prompt_tokens = self._described_prompt(delta.prompt_logprobs)
        if delta.token is not None:
            self._pending.append(delta)
            text += self._stream.push(delta.token)
        if delta.finish_reason is None:
            return text
        return text + self._stream.flush(cut=delta.finish_reason == "length")

    def take_tokens(self) -> tuple[Token, ...]:
        """Return the tokens of the text that was returned since the last call."""
        prompt, self._prompt_tokens = self._prompt_tokens, ()
        certain = [(start, self._pending.popleft()) for start in self._stream.take_starts()]
        if not self._detailed:
            return prompt
        described = [
            self._described(delta.token, self._offset + start, delta.logprob, delta.top_logprobs)
            for start, delta in certain
            if delta.token is not None
        ]
        return (*prompt, *described)

    def shown(self, frame: LensFrame) -> LensFrame:
        """Return a frame of the lens with its tokens' texts; frames come in order.

        A character that is spread over tokens is the text of the last of them.
        """
        texts = tuple(self._shown.decode(self._vocabulary.token_bytes(i)) for i in frame.ids)
        return replace(frame, texts=texts)

    def _described_prompt(self, logprobs: Sequence[Logprob]) -> tuple[Token, ...]:
        if not logprobs:
            return ()
        stream = TextStream(self._tokenizer)
        for token in self._prompt:
            stream.push(token)
        stream.flush()
        described = zip(self._prompt, stream.take_starts(), logprobs, strict=True)
        return tuple(self._described(token, at, *logprob) for token, at, logprob in described)

    def _described(self, token: int, offset: int, logprob: float | None, top: TopLogprobs) -> Token:
        data = self._vocabulary.token_bytes
        alternatives = tuple(TopToken(data(other), logprob) for other, logprob in top)
        return Token(token, data(token), offset, logprob, alternatives)
