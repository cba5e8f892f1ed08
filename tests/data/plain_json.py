"""JSON records of a text that is in memory as a whole: what reading line by line must equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# A record begins here; a byte-order mark may stand where files were joined.
_NEXT = re.compile(r"[^\s\ufeff]")


def plain_json(text: str) -> Iterator[tuple[int, Any]]:
    """Yield each object after its line, None for what is no JSON."""
    decoder = json.JSONDecoder()
    at, line = 0, 1
    while rest := _NEXT.search(text, at):
        line += text.count("\n", at, rest.start())
        at, value = rest.start(), None
        try:
            value, end = decoder.raw_decode(text, at)
            after = text[end : _end_of_line(text, end)].strip()
            if after and not after.startswith("{"):
                raise json.JSONDecodeError("Extra data", text, end)
        except (ValueError, RecursionError):
            value, end = None, _next_object(text, at)
        yield line, value
        line += text.count("\n", at, end)
        at = end


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _next_object(text: str, at: int) -> int:
    """Return the first line after `at` that is not the inside or the end of a broken object."""
    found = re.compile(r"\n(?=[^\s}\]])").search(text, at)
    return found.end() if found else len(text)
