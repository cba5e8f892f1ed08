"""Tokens to text as they come: whole UTF-8 characters only, cut before a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer, grown token by token.

    A character whose bytes are spread over tokens is held back until it is whole, and text that
    may turn out to begin a stop text until it does not.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._decoded = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that `token` makes certain; empty while more is needed.

        Once a stop text is complete, `stopped` is true and what came before it has been returned.
        """
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer, token)
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
        return tail + held

    def _release(self, piece: str) -> str:
        self._decoded += len(piece)
        text = self._held + piece
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
