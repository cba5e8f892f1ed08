"""Rows of training data as places in flat tokens: cut, packed, and built when they are asked for.

A record is a line of `parts` (begin, end, begin, end), the places of its document and of the second
one of a pair, which is empty for any other record. Attention keeps the documents of a row apart
(llamahome.attention.Documents).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from llamahome.data import IGNORED, Array, DataError, Row, TokenTable

LABEL_TOKENS = 2**18  # labels that are looked at together, or those of one record


class Tokens:
    """Tables one after the other, as if they were one."""

    def __init__(self) -> None:
        self._tables: list[TokenTable] = []
        self._starts = [0]

    def add(self, table: TokenTable) -> Array:
        """Append a table, and return the parts (records, 4) of its rows."""
        parts: Array = table.spans[:, [0, 1, 1, 2]] + self._starts[-1]
        self._tables.append(table)
        self._starts.append(self._starts[-1] + len(table.columns["labels"]))
        return parts

    def row(self, parts: Sequence[int]) -> Row:
        """Return a record's row."""
        first = self._read(parts[0], parts[1])
        if not is_pair(parts):
            return first
        second = self._read(parts[2], parts[3])
        documents = [0] * len(first["labels"]) + [1] * len(second["labels"])
        return {**{key: first[key] + second[key] for key in first}, "documents": documents}

    def learned(self, parts: Array) -> Array:
        """Tell of each document (documents, 2) whether it has a label that a token predicts."""
        found = np.zeros(len(parts), dtype=bool)
        order = np.argsort(parts[:, 0], kind="stable")
        begins = parts[order, 0]
        start = 0
        while start < len(order):
            stop = int(np.searchsorted(begins, begins[start] + LABEL_TOKENS))
            chosen = order[start:stop]
            begin, end = parts[chosen].T
            places = self._learned_places(int(begin[0]), int(end.max()))
            at = np.searchsorted(places, begin + 1)
            inside = at < len(places)
            found[chosen[inside]] = places[at[inside]] < end[inside]
            start = stop
        return found

    def _learned_places(self, start: int, stop: int) -> Array:
        labels = [
            table.columns["labels"][max(start - begin, 0) : max(stop - begin, 0)]
            for table, begin in zip(self._tables, self._starts[:-1], strict=True)
        ]
        return start + np.flatnonzero(np.concatenate(labels) != IGNORED)

    def _read(self, start: int, stop: int) -> Row:
        """Return tokens of one table."""
        number = np.searchsorted(self._starts, start, side="right") - 1
        table, begin = self._tables[number], self._starts[number]
        row = {
            key: column[start - begin : stop - begin].tolist()
            for key, column in table.columns.items()
        }
        ids, labels = row["input_ids"], row["labels"]
        mask = row.get("attention_mask") or [1] * len(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Rows that are built when they are asked for.

    Attributes:
        parts: (records, 4), in the order in which rows hold them.
        bounds: (rows + 1,), at which record each row begins; None gives each record a row.
    """

    tokens: Tokens
    parts: Array
    bounds: Array | None = None

    def __len__(self) -> int:
        return len(self.parts) if self.bounds is None else len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        if self.bounds is None:
            return self.tokens.row(self.parts[at].tolist())
        records = self.parts[self.bounds[at] : self.bounds[at + 1]].tolist()
        return _joined([self.tokens.row(parts) for parts in records])

    def lengths(self) -> Array:
        """Return the tokens of each row, without building it."""
        lengths = sizes(self.parts)
        return lengths if self.bounds is None else np.add.reduceat(lengths, self.bounds[:-1])


def row_lengths(rows: Sequence[Row]) -> list[int]:
    """Return the tokens of each row."""
    if isinstance(rows, Rows):
        return [int(length) for length in rows.lengths()]
    return [len(row["input_ids"]) for row in rows]


def pack(parts: Array, length: int) -> tuple[Array, Array]:
    """Join records to rows of at most `length` tokens, none of them cut.

    Best-fit decreasing: the longest come first, each into the fullest row that has room for it
    (Johnson 1973; for training, Ding et al. 2024, arXiv 2404.10830).

    Args:
        parts: records of at most `length` tokens in all.

    Returns:
        `parts` and `bounds` of `Rows`, which number each token's document. The first label of a
        document becomes IGNORED: nothing before it predicts it.
    """
    tokens = sizes(parts)
    order = np.argsort(-tokens, kind="stable")
    rows = np.empty(len(parts), dtype=np.int64)
    count = 0
    by_room: dict[int, list[int]] = {}  # rows that have so many tokens left
    rooms: list[int] = []  # the keys of by_room, in order
    for i, size in enumerate(tokens[order].tolist()):
        at = bisect_left(rooms, size)
        if at == len(rooms):
            room, number = length, count
            count += 1
        else:
            room = rooms[at]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        rows[i] = number
        left = room - size
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(number)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return parts[order[np.argsort(rows, kind="stable")]], bounds


def _joined(rows: list[Row]) -> Row:
    joined: Row = {"input_ids": [], "attention_mask": [], "labels": [], "documents": []}
    for row in rows:
        first = joined["documents"][-1] + 1 if joined["documents"] else 0
        numbers = row.get("documents") or [0] * len(row["labels"])
        joined["documents"] += [first + number for number in numbers]
        joined["input_ids"] += row["input_ids"]
        joined["attention_mask"] += row["attention_mask"]
        starts = zip(numbers, [-1, *numbers[:-1]], row["labels"], strict=True)
        joined["labels"] += [IGNORED if own != before else label for own, before, label in starts]
    return joined


def fit(parts: Array, length: int, overlong: str) -> Array:
    """Make every record fit into `length` tokens; of a pair, each answer with its prompt.

    Args:
        overlong: for longer ones: `cut` keeps their beginning, `split` makes records of their
            pieces, `drop` leaves them out.

    Raises:
        DataError: for a pair that would have to be split.
    """
    long = longest(parts) > length
    if overlong == "drop":
        return parts[~long]
    if overlong == "cut":
        begin, end = parts[:, ::2], parts[:, 1::2]
        cut = np.minimum(end, begin + length)
        return np.stack([begin, cut], axis=2).reshape(-1, 4)
    if len(pairs := parts[long & are_pairs(parts)]):
        raise DataError(
            f"data.overlong=split: an answer of {longest(pairs)[0]} tokens is half of a pair, "
            "which cannot be split; use cut or drop, or raise data.context_length"
        )
    pieces = np.where(long, -(-sizes(parts) // length), 1)
    split = np.repeat(parts, pieces, axis=0)
    number = np.arange(len(split)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    is_piece = np.repeat(long, pieces)
    begin = split[:, 0] + number * length
    end = np.minimum(begin + length, split[:, 1])
    split[is_piece] = np.stack([begin, end, end, end], axis=1)[is_piece]
    return split


def learns(parts: Array, tokens: Tokens) -> Array:
    """Tell whether each document of a record has a label that a token before it predicts."""
    return tokens.learned(parts[:, :2]) & (~are_pairs(parts) | tokens.learned(parts[:, 2:]))


def sizes(parts: Array) -> Array:
    """Return the tokens of each record."""
    total: Array = (parts[:, 1] - parts[:, 0]) + (parts[:, 3] - parts[:, 2])
    return total


def longest(parts: Array) -> Array:
    """Return the tokens of each record's longest document."""
    most: Array = np.maximum(parts[:, 1] - parts[:, 0], parts[:, 3] - parts[:, 2])
    return most


def are_pairs(parts: Array) -> Array:
    """Tell which records are two answers to compare."""
    pairs: Array = parts[:, 3] > parts[:, 2]
    return pairs


def is_pair(parts: Sequence[int]) -> bool:
    """Tell whether a record is two answers to compare."""
    return parts[3] > parts[2]
