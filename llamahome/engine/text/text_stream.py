"""Tokens to text as they come: whole UTF-8 characters only, cut before a stop text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from llamahome.requests import EngineError


class TextError(EngineError):
    """The tokenizer could not turn an answer's tokens into text."""


class TextStream:
    """The text of one answer, grown token by token.

    A character whose bytes are spread over tokens is held back until it is whole, and text that
    may turn out to begin a stop text until it does not.

    Args:
        tokenizer: of the model.
        stop: texts that end the answer.
        min_tokens: until then a stop text is text as any other.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, min_tokens: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._tokens: list[int] = []
        self._decoded = 0
        self._returned = 0
        self._held = ""
        # Of the tokens whose text is not returned yet: where each begins, and, where known, ends.
        self._starts: deque[int] = deque()
        self._ends: deque[int] = deque()
        self._settled: list[int] = []
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that `token` makes certain; empty while more is needed.

        Once a stop text is complete, `stopped` is true and what came before it has been returned.

        Raises:
            TextError: when the tokenizer fails.
        """
        self._tokens.append(token)
        self._starts.append(self._decoded)
        try:
            piece = self._stream.step(self._tokenizer, token)
        except Exception as error:  # tokenizers has no narrower class
            raise TextError(f"token {token} could not be decoded: {error}") from error
        return self._release(piece) if piece else ""

    def flush(self) -> str:
        """What is still held back, at the end of the answer."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        tail = self._release(whole[self._decoded :])
        if self.stopped:
            return tail
        held, self._held = self._held, ""
        self._settled += self._starts
        self._starts.clear()
        return tail + held

    def take_settled(self) -> list[int]:
        """Where the tokens begin in the answer, in characters, whose text has been returned whole
        since the last call, in order; tokens of a stop text never are."""
        settled, self._settled = self._settled, []
        return settled

    def _release(self, piece: str) -> str:
        self._decoded += len(piece)
        self._ends += [self._decoded] * (len(self._starts) - len(self._ends))
        text = self._held + piece
        certain = self._certain(text)
        self._held = "" if self.stopped else text[certain:]
        self._returned += certain
        self._settle()
        return text[:certain]

    def _certain(self, text: str) -> int:
        """How much of the text that is not returned yet can be; sets `stopped`."""
        if len(self._tokens) < self._min_tokens:
            return len(text)
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return min(found)
        return len(text) - max((_overlap(text, s) for s in self._stop), default=0)

    def _settle(self) -> None:
        while self._ends and (
            self._ends[0] <= self._returned or (self.stopped and self._starts[0] < self._returned)
        ):
            self._ends.popleft()
            self._settled.append(self._starts.popleft())


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
