"""Instruction records from files, as chats."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from llamahome.data.errors import DataError

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


class Record(TypedDict):
    """One chat; every assistant turn answers a user turn, and there is at least one."""

    messages: list[Message]


def read_records(path: Path, format: str) -> list[Record]:
    """Read a file of JSON lines, or of one JSON list, as chats.

    Args:
        path: the file, in UTF-8.
        format: `chat`, {"messages": [{"role": ..., "content": ...}, ...]}, or `alpaca`,
            {"instruction": ..., "input": ..., "output": ...} with an optional input. Keys beyond
            these are ignored.

    Raises:
        DataError: for a record that cannot be used; the message names the file, the line (or the
            record of a JSON list), the field and the cure.
    """
    parse = _PARSERS[format]
    records = [parse(raw, where) for where, raw in _objects(path)]
    if not records:
        raise DataError(f"{path}: holds no record; give a file with one JSON object per line")
    return records


def split_records(
    records: list[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Hold out `fraction` of the records, at least one; the same ones for the same seed.

    Returns:
        The records to train on and the held-out ones, both in the order of `records`.

    Raises:
        DataError: for fewer than two records.
    """
    if len(records) < 2:
        raise DataError(
            f"{len(records)} record cannot be split into training and held-out records; "
            "give more records, or a file of held-out ones"
        )
    count = min(max(1, round(len(records) * fraction)), len(records) - 1)
    held = set(random.Random(seed).sample(range(len(records)), count))
    train = [record for i, record in enumerate(records) if i not in held]
    return train, [records[i] for i in sorted(held)]


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every JSON value of the file, after its place for error messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    if text.lstrip().startswith("["):
        for number, value in enumerate(_parse_json(text, path, 1), start=1):
            yield f"{path}: record {number}", value
        return
    # splitlines() would also cut at U+2028 and the like, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_json(line, path, number)


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}:{line}: not JSON ({error.msg}, column {error.colno}); "
            "write one JSON object per line, or the whole file as one list"
        ) from error


def _chat(raw: Any, where: str) -> Record:
    turns = _field(raw, "messages", where)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: messages must be a list of at least one turn")
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        messages.append(_message(turn, f"{where}: messages[{i}]"))
        answers = i > 0 and messages[i - 1]["role"] == "user"
        if messages[i]["role"] == "assistant" and not answers:
            raise DataError(f"{where}: messages[{i}]: put the user turn it answers before it")
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(
            f"{where}: messages has no assistant turn, so there is nothing to learn from; "
            "add the answer or remove the record"
        )
    return {"messages": messages}


def _message(turn: Any, where: str) -> Message:
    role = _field(turn, "role", where)
    if role not in ROLES:
        raise DataError(f"{where}: role {role!r} is unknown; use one of {', '.join(ROLES)}")
    return {"role": role, "content": _text(turn, "content", where)}


def _alpaca(raw: Any, where: str) -> Record:
    prompt = _text(raw, "instruction", where)
    answer = _text(raw, "output", where)
    if raw.get("input"):
        prompt += "\n\n" + _text(raw, "input", where)
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def _text(raw: Any, name: str, where: str) -> str:
    value = _field(raw, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}; it must be a string")
    if not value.strip():
        raise DataError(f"{where}: {name} is empty; fill it or remove the record")
    return value


def _field(raw: Any, name: str, where: str) -> Any:
    if not isinstance(raw, dict):
        raise DataError(f"{where}: {type(raw).__name__} where a JSON object is needed")
    if name not in raw:
        present = ", ".join(map(str, raw)) or "none"
        raise DataError(
            f"{where}: the key {name!r} is missing (keys here: {present}); "
            "add it, or set data.format to what the file holds"
        )
    return raw[name]


_PARSERS: dict[str, Callable[[Any, str], Record]] = {"chat": _chat, "alpaca": _alpaca}
