"""Whole documents packed into rows, which attention keeps apart (llamahome.attention.Documents)."""

from __future__ import annotations

from bisect import bisect_left, insort

from llamahome.data import IGNORED, Row


def pack(rows: list[Row], length: int) -> list[Row]:
    """Join documents to rows of at most `length` tokens, none of them cut.

    Best-fit decreasing: the longest come first, each into the fullest row that has room for it
    (Johnson 1973; for training, Ding et al. 2024, arXiv 2404.10830).

    Args:
        rows: one document each, of at most `length` tokens.

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
    return [_joined(documents) for documents in bins]


def _joined(documents: list[Row]) -> Row:
    joined: Row = {"input_ids": [], "attention_mask": [], "labels": [], "documents": []}
    for number, row in enumerate(documents):
        joined["input_ids"] += row["input_ids"]
        joined["attention_mask"] += row["attention_mask"]
        joined["labels"] += [IGNORED, *row["labels"][1:]]
        joined["documents"] += [number] * len(row["input_ids"])
    return joined


def fit(rows: list[Row], length: int, overlong: str) -> list[Row]:
    """Make every row fit into `length` tokens.

    Args:
        overlong: for longer rows: `cut` keeps their beginning, `split` makes documents of their
            pieces, `drop` leaves them out.
    """
    fitting: list[Row] = []
    for row in rows:
        size = len(row["input_ids"])
        if size <= length:
            fitting.append(row)
        elif overlong != "drop":
            end = length if overlong == "cut" else size
            fitting += [
                {key: values[start : start + length] for key, values in row.items()}
                for start in range(0, end, length)
            ]
    return fitting
