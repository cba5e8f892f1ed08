"""Training rows as lists in memory, record by record: what rows on disk must equal."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llamahome.config import DataConfig
from llamahome.data import (
    IGNORED,
    BadRecord,
    Row,
    RowEncoder,
    parse_record,
    plain_texts,
    raw_records,
    read_text,
    text_rows,
)
from train.recipes import custom_rows


def plain_datasets(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[list[Row], list[Row]]:
    """Return the training and the held-out rows."""
    train: list[Row] = []
    held: list[Row] = []
    for file, times in zip((data.train_file, *data.mix), (1.0, *data.mix_times), strict=True):
        rows = plain_rows(file, "train", data, tokenizer)
        if data.eval_file is None and data.format == "custom":
            held += plain_rows(file, "validation", data, tokenizer)
        elif data.eval_file is None and plain_texts(file, data.format):
            count = max(1, round(len(rows) * data.eval_fraction))
            rows, more = rows[:-count], rows[-count:]
            held += more
        elif data.eval_file is None:
            rows, more = _split_rows(rows, data.eval_fraction, seed)
            held += more
        whole = int(times)
        share = random.Random(seed).sample(rows, round(len(rows) * (times - whole)))
        train += rows * whole + share
    if data.eval_file is not None:
        held = plain_rows(data.eval_file, "validation", data, tokenizer)
    random.Random(seed).shuffle(train)
    return _arranged(train, data), _arranged(held, data)


def plain_rows(
    file: str, split: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Return a row for each record."""
    if data.format == "custom":
        return custom_rows(file, tokenizer, split, data.limit, data.context_length)
    if texts := plain_texts(file, data.format):
        each = (
            text_rows(read_text(Path(text.name)), tokenizer, data.context_length) for text in texts
        )
        return [row for rows in each for row in rows][: data.limit]
    encoder = RowEncoder(tokenizer, data.train_on)
    rows: list[Row] = []
    for where, raw in raw_records(file):
        if len(rows) == data.limit:
            break
        try:
            if not isinstance(raw, BadRecord):
                rows.append(encoder.encode(parse_record(raw, data.format, where)))
        except BadRecord:
            continue
    return rows


def _arranged(rows: list[Row], data: DataConfig) -> list[Row]:
    length = data.context_length
    kept = [row for row in _fit(rows, length, data.overlong) if _learns(row)]
    if data.batching == "packing":
        return _pack(kept, 2 * length if _is_pair(kept[0]) else length)
    return kept


def _split_rows(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    held = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for i, row in enumerate(rows) if i not in held]
    return train, [rows[i] for i in sorted(held)]


def _pack(rows: list[Row], length: int) -> list[Row]:
    """Join documents, best-fit decreasing."""
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
        for part in _documents(row):
            joined["labels"] += [IGNORED, *part["labels"][1:]]
        numbers = row.get("documents") or [0] * len(row["labels"])
        joined["documents"] += [first + number for number in numbers]
    return joined


def _fit(rows: list[Row], length: int, overlong: str) -> list[Row]:
    """Cut, split or drop what is longer."""
    fitting: list[Row] = []
    for row in rows:
        if _longest(row) <= length:
            fitting.append(row)
        elif overlong == "cut":
            fitting.append(_cut(row, length))
        elif overlong == "split":
            fitting += _split(row, length)
    return fitting


def _longest(row: Row) -> int:
    """Return the tokens of a row's longest document."""
    return max(len(part["labels"]) for part in _documents(row))


def _learns(row: Row) -> bool:
    """Tell whether each document of a row has a label that a token before it predicts."""
    return all(any(label != IGNORED for label in part["labels"][1:]) for part in _documents(row))


def _is_pair(row: Row) -> bool:
    """Tell whether a record is two answers to compare."""
    return "documents" in row


def _documents(row: Row) -> list[Row]:
    """Return the documents of a record: one, or the two of a pair."""
    if not _is_pair(row):
        return [row]
    middle = row["documents"].index(1)
    return [
        {key: values[part] for key, values in row.items()}
        for part in (slice(middle), slice(middle, None))
    ]


def _cut(row: Row, length: int) -> Row:
    parts = _documents(row)
    return {key: [value for part in parts for value in part[key][:length]] for key in row}


def _split(row: Row, length: int) -> list[Row]:
    return [
        {key: values[start : start + length] for key, values in row.items()}
        for start in range(0, len(row["labels"]), length)
    ]
