"""Rows as flat arrays: in memory, or mapped from files that processes share."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamahome.data.encode import Row

Array = NDArray[Any]

COLUMNS = ("input_ids", "labels")
TOKEN = np.dtype("<i4")
SPAN = np.dtype("<i8")
ENTRY = "entry.json"
ENTRY_KEYS = {"rows", "tokens", "bytes", "crc32", "bad", "source"}
_READ_BYTES = 2**20


class CorruptTableError(Exception):
    """Files of a table whose content is not what was written."""


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Rows one after the other in flat columns.

    Attributes:
        spans: (rows, 3), where each row begins, where the second answer of a pair begins (the end
            for a row that is no pair), and where it ends.
        columns: (tokens,) each: input_ids, labels, and attention_mask where a token is masked.
        bad: a line for each record that was skipped.
    """

    spans: Array
    columns: dict[str, Array]
    bad: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> TokenTable:
        """Make a table in memory."""
        rows = list(rows)
        masked = any(0 in row["attention_mask"] for row in rows)
        keys = (*COLUMNS, "attention_mask") if masked else COLUMNS
        columns = {
            key: np.fromiter((value for row in rows for value in row[key]), dtype=SPAN)
            for key in keys
        }
        return cls(spans_of(rows), columns)

    def __len__(self) -> int:
        return len(self.spans)

    def first(self, count: int) -> TokenTable:
        """Return the first rows, which begin at token 0."""
        spans = self.spans[:count]
        end = int(spans[-1, 2]) if count else 0
        return TokenTable(spans, {key: column[:end] for key, column in self.columns.items()})


def spans_of(rows: Sequence[Row]) -> Array:
    """Return begin, middle and end (rows, 3) of rows that follow each other from 0 on."""
    spans, at = [], 0
    for row in rows:
        size = len(row["input_ids"])
        first = row["documents"].index(1) if "documents" in row else size
        spans.append((at, at + first, at + size))
        at += size
    return np.array(spans, dtype=SPAN).reshape(-1, 3)


class TableWriter:
    """Files of a table, appended to; `close` writes what `open_table` needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: _file(folder, name).open("wb") for name in (*COLUMNS, "spans")}
        self._sums = dict.fromkeys(self._files, 0)
        self.rows = self._tokens = 0

    def append(self, table: TokenTable) -> None:
        """Append the rows of a table whose tokens are all attended to."""
        self._write("spans", (table.spans + self._tokens).astype(SPAN))
        for name in COLUMNS:
            self._write(name, table.columns[name].astype(TOKEN))
        self.rows += len(table)
        self._tokens += len(table.columns[COLUMNS[0]])

    def close(self, **said: Any) -> None:
        """Finish the files; `said` is kept with their sizes and checksums."""
        sizes = {name: file.tell() for name, file in self._files.items()}
        self.abort()
        entry = {"rows": self.rows, "tokens": self._tokens, "bytes": sizes, "crc32": self._sums}
        (self._folder / ENTRY).write_text(json.dumps({**entry, **said}) + "\n")

    def abort(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, name: str, values: Array) -> None:
        content = values.tobytes()
        self._files[name].write(content)
        self._sums[name] = zlib.crc32(content, self._sums[name])


def read_entry(folder: Path) -> dict[str, Any]:
    """Return what is said about a table's files.

    Raises:
        CorruptTableError: when it cannot be read.
        FileNotFoundError: when there is none.
    """
    try:
        entry = json.loads((folder / ENTRY).read_bytes())
        if isinstance(entry, dict) and entry.keys() >= ENTRY_KEYS:
            return entry
    except ValueError as error:
        raise CorruptTableError(f"{ENTRY} is no JSON ({error})") from error
    raise CorruptTableError(f"{ENTRY} lacks keys")


def open_table(folder: Path) -> TokenTable:
    """Map a table's files into memory, after a comparison with their checksums.

    Raises:
        CorruptTableError: for files that are not what was written.
        FileNotFoundError: when there is no table.
    """
    entry = read_entry(folder)
    for name, wanted in entry["crc32"].items():
        file = _file(folder, name)
        if file.stat().st_size != entry["bytes"][name] or _crc32(file) != wanted:
            raise CorruptTableError(f"{file.name} is not what was written")
    columns = {name: _mapped(_file(folder, name), TOKEN) for name in COLUMNS}
    spans = _mapped(_file(folder, "spans"), SPAN).reshape(-1, 3)
    return TokenTable(spans, columns, entry["bad"])


def _mapped(file: Path, dtype: np.dtype[Any]) -> Array:
    return np.memmap(file, dtype, mode="r")


def _crc32(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while content := stream.read(_READ_BYTES):
            found = zlib.crc32(content, found)
    return found


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"
