"""Whole documents packed into rows, which attention keeps apart (llamahome.attention.Documents)."""

from __future__ import annotations

from bisect import bisect_left, insort

from llamahome.data import IGNORED, DataError, Row


def pack(rows: list[Row], length: int) -> list[Row]:
    """Join documents to rows of at most `length` tokens, none of them cut.

    Best-fit decreasing: the longest come first, each into the fullest row that has room for it
    (Johnson 1973; for training, Ding et al. 2024, arXiv 2404.10830).

    Args:
        rows: one document each, or the two of a pair, of at most `length` tokens in all.

    Returns:
        Rows with `documents`, which numbers each token's document. The first label of a document
        is IGNORED: nothing before it predicts it.
    """
    bins: list[list[Row]] = []
    by_room: dict[int, list[int]] = {}  # rows that have so many tokens left
    rooms: list[int] = []  # the keys of by_room, in order
    for row in sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True):
        size = len(row["input_ids"])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            room, number = length, len(bins)
            bins.append([])
        else:
            room = rooms[at]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        bins[number].append(row)
        left = room - size
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(number)
    return [_joined(packed) for packed in bins]


def _joined(rows: list[Row]) -> Row:
    joined: Row = {"input_ids": [], "attention_mask": [], "labels": [], "documents": []}
    for row in rows:
        first = joined["documents"][-1] + 1 if joined["documents"] else 0
        joined["input_ids"] += row["input_ids"]
        joined["attention_mask"] += row["attention_mask"]
        for part in documents(row):
            joined["labels"] += [IGNORED, *part["labels"][1:]]
        numbers = row.get("documents") or [0] * len(row["labels"])
        joined["documents"] += [first + number for number in numbers]
    return joined


def fit(rows: list[Row], length: int, overlong: str) -> list[Row]:
    """Make every record fit into `length` tokens; of a pair, each answer with its prompt.

    Args:
        overlong: for longer ones: `cut` keeps their beginning, `split` makes records of their
            pieces, `drop` leaves them out.

    Raises:
        DataError: for a pair that would have to be split.
    """
    fitting: list[Row] = []
    for row in rows:
        if longest(row) <= length:
            fitting.append(row)
        elif overlong == "cut":
            fitting.append(_cut(row, length))
        elif overlong == "split":
            fitting += _split(row, length)
    return fitting


def longest(row: Row) -> int:
    """Return the tokens of a row's longest document."""
    return max(len(part["labels"]) for part in documents(row))


def learns(row: Row) -> bool:
    """Tell whether each document of a row has a label that a token before it predicts."""
    return all(any(label != IGNORED for label in part["labels"][1:]) for part in documents(row))


def is_pair(row: Row) -> bool:
    """Tell whether a record is two answers to compare."""
    return "documents" in row


def documents(row: Row) -> list[Row]:
    """Return the documents of a record: one, or the two of a pair."""
    if not is_pair(row):
        return [row]
    middle = row["documents"].index(1)
    return [
        {key: values[part] for key, values in row.items()}
        for part in (slice(middle), slice(middle, None))
    ]


def _cut(row: Row, length: int) -> Row:
    parts = documents(row)
    return {key: [value for part in parts for value in part[key][:length]] for key in row}


def _split(row: Row, length: int) -> list[Row]:
    if is_pair(row):
        raise DataError(
            f"data.overlong=split: an answer of {longest(row)} tokens is half of a pair, which "
            "cannot be split; use cut or drop, or raise data.context_length"
        )
    return [
        {key: values[start : start + length] for key, values in row.items()}
        for start in range(0, len(row["labels"]), length)
    ]
