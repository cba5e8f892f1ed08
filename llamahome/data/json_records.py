"""JSON records of a file, read line by line: memory holds one record, not the file."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from llamahome.data.errors import BadRecord, DataError

# A record begins here; a byte-order mark may stand where files were joined.
_NEXT = re.compile(r"[^\s\ufeff]")
# The first line that is not the inside or the end of a broken object.
_NEXT_OBJECT = re.compile(r"\n(?=[^\s}\]])")
_CURE = "write one JSON object after the other, or the whole file as one list"


def json_records(lines: Iterable[bytes], file: str) -> Iterator[tuple[str, Any]]:
    """Yield the objects of one JSON list, or of JSON objects that follow each other.

    A list is read whole. BadRecord stands where something is no JSON.

    Raises:
        DataError: for a list that is no JSON.
        UnicodeDecodeError: for a line that is no UTF-8.
    """
    decoded = _decoded(lines)
    first = "".join(_until_text(decoded))
    if first.lstrip().startswith("["):
        for number, value in enumerate(_list(first + "".join(decoded), file), start=1):
            yield f"{file}: record {number}", value
    else:
        yield from _Objects(first, decoded, file).read()


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line.decode("utf-8" if number else "utf-8-sig")


def _until_text(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


class _Objects:
    """A window of whole lines that moves over a file, and grows while an object is not complete."""

    def __init__(self, text: str, lines: Iterator[str], file: str) -> None:
        self._text, self._lines, self._file = text, lines, file
        self._first = 1  # the line number of the window's first line
        self._at = 0
        self._line = 1  # that of the place `_at`
        self._decoder = json.JSONDecoder()

    def read(self) -> Iterator[tuple[str, Any]]:
        while self._find():
            where = f"{self._file}:{self._line}"
            try:
                value, end = self._decode()
                after = self._text[end : _end_of_line(self._text, end)].strip()
                if after and not after.startswith("{"):
                    raise json.JSONDecodeError("Extra data", self._text, end)
                self._move(end)
                yield where, value
            except (ValueError, RecursionError) as error:
                reason = self._fault(error)
                self._skip()
                yield where, BadRecord(f"{where}: not JSON ({reason}); {_CURE}")

    def _find(self) -> bool:
        """Go to the next record; return False at the end of the file."""
        while (found := _NEXT.search(self._text, self._at)) is None:
            self._move(len(self._text))
            if not self._grow(1):
                return False
        self._move(found.start())
        return True

    def _decode(self) -> tuple[Any, int]:
        """Decode the object at this place, with as many more lines as it needs.

        Lines are whole and strings hold no line break, so an error at the window's end, and no
        other, may vanish when more lines follow.
        """
        while True:
            try:
                return self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                missing = not self._text[error.pos :].strip()
                if not missing or not self._grow(1 + self._text.count("\n", self._at)):
                    raise

    def _skip(self) -> None:
        """Go to the next line that may begin an object."""
        while (found := _NEXT_OBJECT.search(self._text, self._at)) is None:
            # Keep a line's end: the lines that follow it decide whether an object begins there.
            self._move(max(self._at, len(self._text) - 1))
            if not self._grow(1):
                self._move(len(self._text))
                return
        self._move(found.end())

    def _move(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _grow(self, count: int) -> bool:
        """Append up to `count` lines and forget those before this place."""
        more = "".join(itertools.islice(self._lines, count))
        if more:
            start = self._text.rfind("\n", 0, self._at) + 1
            self._text, self._at = self._text[start:] + more, self._at - start
            self._first = self._line
        return bool(more)

    def _fault(self, error: ValueError | RecursionError) -> str:
        """Say what is wrong; nesting and numbers without end have no place."""
        if not isinstance(error, json.JSONDecodeError):
            return str(error).partition(";")[0]
        line = self._first + error.lineno - 1
        place = f"column {error.colno}" if line == self._line else f"line {line}"
        return f"{error.msg}, {place}"


def _list(text: str, file: str) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        reason = str(error).partition(";")[0]
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, column {error.colno}"
        raise DataError(f"{file}:{line}: not JSON ({reason}); {_CURE}") from error
    return values


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
