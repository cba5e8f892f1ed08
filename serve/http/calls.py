"""Calls of functions in an answer's text, found as it grows."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from llamahome.requests import CallFormat, Token
from serve.wire import CallDelta, Delta


async def with_calls(stream: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """Yield an answer's deltas with its calls apart from its text.

    Nothing changes where the replica says nothing of a format. A call's first delta has its id and
    name, later ones parts of its arguments, and the answer's last has no part of either.
    """
    reader: CallReader | None = None
    async with aclosing(stream) as deltas:
        async for delta in deltas:
            if reader is None and delta.call_format is not None:
                reader = CallReader(delta.call_format)
            if reader is None:
                yield delta
                continue
            for part in reader.split(delta):
                yield part


class CallReader:
    """One answer, split into its text and its calls.

    White space around the text and all that may begin a call is held back until more is known. The
    grammar of the answer sees to it that a call that has begun is well-formed.
    """

    def __init__(self, form: CallFormat) -> None:
        self._form = form
        self._held = ""
        self._read: Callable[[], str | CallDelta | None] = self._text
        self._released = 0
        self._calls = 0
        self._scan = ObjectScan()
        self._tokens: list[Token] = []

    def split(self, delta: Delta) -> Iterator[Delta]:
        """Yield a delta as several: of text, of calls, and one with what else it has."""
        self._held += delta.text
        self._tokens += delta.tokens
        pieces = list(iter(self._read_next, None))
        if delta.finish_reason is not None and self._read == self._text:
            pieces.append(self._release(len(self._held)))
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        tokens = tuple(self._text_tokens())
        if text:
            yield Delta(text=text, token_count=0, tokens=tokens)
            tokens = ()
        for piece in pieces:
            if isinstance(piece, CallDelta):
                yield Delta(text="", token_count=0, calls=(piece,))
        reason = delta.finish_reason
        if reason == "stop" and self._complete:
            reason = "tool_calls"
        yield replace(delta, text="", tokens=tokens, call_format=None, finish_reason=reason)

    @property
    def _complete(self) -> bool:
        return self._calls > 0 and self._read == self._between and self._held == self._form.closing

    def _read_next(self) -> str | CallDelta | None:
        return self._read()

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._released += count
        return text

    def _text_tokens(self) -> Iterator[Token]:
        """Yield the tokens of released text; a call's tokens never are."""
        while self._tokens and self._tokens[0].offset < self._released:
            yield self._tokens.pop(0)

    def _text(self) -> str | CallDelta | None:
        form = self._form
        if not self._held:
            return None
        if not form.marker:
            self._read = self._opening if self._held[0] == form.opening[0] else self._plain
            return self._read()
        at = self._held.find(form.marker)
        if at < 0:
            lengths = range(len(form.marker), 0, -1)
            begun = next((n for n in lengths if self._held.endswith(form.marker[:n])), 0)
            return self._release(len(self._held[: len(self._held) - begun].rstrip())) or None
        text = self._release(len(self._held[:at].rstrip()))
        self._held = self._held.lstrip()
        self._read = self._opening
        return text

    def _plain(self) -> str | None:
        return self._release(len(self._held)) or None

    def _opening(self) -> str | CallDelta | None:
        opening = self._form.opening
        if len(self._held) < len(opening):
            return None
        self._held = self._held[len(opening) :]
        self._read = self._name
        return self._read()

    def _name(self) -> CallDelta | None:
        name, middle, rest = self._held.partition(self._form.middle)
        if not middle:
            return None
        self._held, self._read, self._scan = rest, self._arguments, ObjectScan()
        self._calls += 1
        identity = f"call_{uuid.uuid4().hex[:24]}"
        return CallDelta(index=self._calls - 1, arguments="", id=identity, name=name)

    def _arguments(self) -> CallDelta | None:
        count = self._scan.push(self._held)
        arguments, self._held = self._held[:count], self._held[count:]
        if self._scan.ended:
            self._read = self._between
        return CallDelta(index=self._calls - 1, arguments=arguments) if arguments else None

    def _between(self) -> CallDelta | None:
        following = self._form.following
        if following is None or not self._held.startswith(following):
            return None
        self._held = self._held[len(following) :]
        self._read = self._name
        return self._name()


class ObjectScan:
    """A look for the end of a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self.ended = False

    def push(self, text: str) -> int:
        """Return how many characters of `text` belong to the object."""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return at + 1
        return len(text)


def whole_calls(calls: Sequence[CallDelta]) -> list[CallDelta]:
    """Return each call as one, from its parts."""
    whole: dict[int, CallDelta] = {}
    for part in calls:
        first = whole.get(part.index)
        arguments = part.arguments if first is None else first.arguments + part.arguments
        whole[part.index] = replace(first or part, arguments=arguments)
    return list(whole.values())
