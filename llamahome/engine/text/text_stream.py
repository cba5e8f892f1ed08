"""A stream from tokens to text: whole UTF-8 characters only, cut before a stop text."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llamahome.requests import EngineError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of byte fallback
LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}  # byte-level tokens


class TextError(EngineError):
    """The tokenizer could not turn an answer's tokens into text."""


class TextStream:
    """The text of one answer, grown token by token.

    A character whose bytes are spread over tokens is held back until it is whole. Tokens of byte
    fallback are held back until another token follows, because a wrong byte changes the text of all
    bytes next to it. Text that may begin a stop text is held back until it is clear that it does
    not. The pieces together are `decode(before + answer)` less `decode(before)`.

    Args:
        stop: texts that end the answer.
        before: tokens that the answer follows; some tokenizers drop the space that a text begins
            with.
        min_tokens: tokens before which a stop text is ordinary text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        before: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._count = 0
        # Tokens of the last text, `_read` of them, then those whose text is not known yet.
        self._window = _last_text(tokenizer, before)
        self._read = len(self._window)
        self._decoded = 0
        self._returned = 0
        self._held = ""
        # Tokens whose text is not returned yet: where each begins, and, where known, ends.
        self._starts: deque[int] = deque()
        self._ends: deque[int] = deque()
        self._whole: list[int] = []
        self.stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop_text is not None

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; empty while more is needed.

        Once a stop text is complete, `stopped` is true and the text before it has been returned.

        Raises:
            TextError: when the tokenizer fails.
        """
        self._count += 1
        self._window.append(token)
        self._starts.append(self._decoded)
        try:
            if BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""):
                return ""
            piece = self._next_piece()
        except Exception as error:  # tokenizers has no narrower class
            raise TextError(f"token {token} could not be decoded: {error}") from error
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return self._release(piece)

    def flush(self, *, cut: bool = False) -> str:
        """Return the text that is still held back at the end of the answer.

        Args:
            cut: the answer was ended from outside, so a character that it has only begun is left
                out; `decode` writes U+FFFD for it.
        """
        if self.stopped:
            return ""
        piece = self._next_piece()
        if cut and piece.endswith(REPLACEMENT):
            piece = self._whole_characters()
        tail = self._release(piece)
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

    def _next_piece(self) -> str:
        """Return the text of the tokens that are not read, as it is behind those that are."""
        known = self._tokenizer.decode(self._window[: self._read], skip_special_tokens=True)
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text[len(known) :]

    def _whole_characters(self) -> str:
        """Return the text of the tokens that are not read, without a character that they begin."""
        data = [self._bytes(token) for token in self._window[self._read :]]
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(b"".join(data))
        begun = len(decoder.getstate()[0])
        # Tokens of byte fallback are dropped: a begun character is one U+FFFD for each byte, and
        # for those of the whole characters next to it. In byte-level text it is a single U+FFFD.
        while data and len(data[-1]) <= begun:
            begun -= len(data.pop())
            self._window.pop()
        piece = self._next_piece()
        return piece[:-1] if begun else piece

    def _bytes(self, token: int) -> bytes:
        """Return the bytes of a token's text; none for a token that text leaves out."""
        name = self._tokenizer.id_to_token(token) or ""
        byte = BYTE.fullmatch(name)
        if byte:
            return bytes([int(byte[1], 16)])
        if not self._tokenizer.decode([token], skip_special_tokens=True):
            return b""
        return bytes(LETTERS[letter] for letter in name if letter in LETTERS)

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
        """Count the characters of unreturned text that can be returned; set `stop_text`."""
        if self._count < self._min_tokens:
            return len(text)
        found = [(at, s) for at, s in ((text.find(s), s) for s in self._stop) if at >= 0]
        if found:
            at, self.stop_text = min(found)
            return at
        return len(text) - max((_overlap(text, s) for s in self._stop), default=0)


def _last_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Return the last tokens that are whole characters together; none after half a character."""
    for at in range(len(tokens) - 1, max(-1, len(tokens) - 9), -1):
        text = tokenizer.decode(list(tokens[at:]), skip_special_tokens=True)
        if text and not text.endswith(REPLACEMENT):
            return list(tokens[at:])
    return []


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
