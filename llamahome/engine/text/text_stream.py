"""A stream from tokens to text: whole UTF-8 characters only, cut before a stop text."""

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

    A character whose bytes are spread over tokens is held back until it is whole. Text that may
    begin a stop text is held back until it is clear that it does not.

    Args:
        stop: texts that end the answer.
        min_tokens: tokens before which a stop text is ordinary text.
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
        # Tokens whose text is not returned yet: where each begins, and, where known, ends.
        self._starts: deque[int] = deque()
        self._ends: deque[int] = deque()
        self._whole: list[int] = []
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; empty while more is needed.

        Once a stop text is complete, `stopped` is true and the text before it has been returned.

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
        """Return the text that is still held back at the end of the answer."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        tail = self._release(whole[self._decoded :])
        if self.stopped:
            return tail
        held, self._held = self._held, ""
        self._whole += self._starts
        self._starts.clear()
        return tail + held

    def take_starts(self) -> list[int]:
        """Return where the tokens begin whose whole text was returned since the last call.

        Places are in characters of the answer, in order. Tokens of a stop text are never listed.
        """
        starts, self._whole = self._whole, []
        return starts

    def _release(self, piece: str) -> str:
        self._decoded += len(piece)
        self._ends += [self._decoded] * (len(self._starts) - len(self._ends))
        text = self._held + piece
        certain = self._certain(text)
        self._held = "" if self.stopped else text[certain:]
        self._returned += certain
        while self._ends and (
            self._ends[0] <= self._returned or (self.stopped and self._starts[0] < self._returned)
        ):
            self._ends.popleft()
            self._whole.append(self._starts.popleft())
        return text[:certain]

    def _certain(self, text: str) -> int:
        """Count the characters of unreturned text that can be returned; set `stopped`."""
        if len(self._tokens) < self._min_tokens:
            return len(text)
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return min(found)
        return len(text) - max((_overlap(text, s) for s in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
