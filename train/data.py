"""Training data: rows from files, and batches addressed by (seed, step)."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llamahome.config import DataConfig, TrainerConfig, checkout
from llamahome.data import (
    IGNORED,
    BadRecords,
    DataError,
    Row,
    RowEncoder,
    exists,
    is_hub_id,
    plain_texts,
    read_rows,
    read_text,
    split_rows,
    text_rows,
)
from train.batch_tokens import Shares, steps_by_tokens
from train.packing import fit, is_pair, learns, longest, pack
from train.recipes import custom_rows, groups_by_length

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Datasets:
    """Rows ready to be batched: packed or cut to context_length, each with a label to learn.

    Attributes:
        pairs: they hold pairs of answers, for DPO and ORPO.
    """

    train: list[Row]
    eval: list[Row]
    pairs: bool = False


def resolve_files(data: DataConfig) -> DataConfig:
    """Return the config with absolute files, for workers that run in another directory.

    Raises:
        DataError: names both places, for a file that is neither in the working directory nor in
            the repository.
    """
    resolved = replace(
        data,
        train_file=_resolve("train_file", data.train_file, data.format),
        mix=[_resolve("mix", file, data.format) for file in data.mix],
    )
    if data.eval_file is None:
        return resolved
    return replace(resolved, eval_file=_resolve("eval_file", data.eval_file, data.format))


def _resolve(key: str, name: str, format: str) -> str:
    path, colon, part = name.rpartition(":") if _has_part(name) else (name, "", "")
    if format == "custom" and not path.endswith(".py"):
        raise DataError(f"data.{key}={name!r} must be file.py or file.py:function")
    places = dict.fromkeys(root / Path(path).expanduser() for root in (Path.cwd(), checkout()))
    found = next((place for place in places if exists(place)), None)
    if found is not None:
        return f"{found.resolve()}{colon}{part}"
    if format != "custom" and is_hub_id(path):
        return name
    tried = " and ".join(map(str, places))
    raise DataError(f"data.{key}={name!r}: no such file; looked at {tried}")


def _has_part(name: str) -> bool:
    """Tell whether a name ends in `:part`, the function of a file or the split of a data set."""
    return ":" in name and not exists(Path(name))


def build_datasets(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Datasets:
    """Read, encode and pack or cut the training and the held-out rows.

    Every worker holds all rows in memory. `seed` orders the records that are packed together and
    picks those held out when there is no eval_file. Held-out rows are packed like the training
    rows, in the file's order, so that they fill the cache as much.

    Raises:
        DataError: for a file, record or row that cannot be used, or when no row is left.
    """
    train, held = records_as_rows(data, tokenizer, seed, BadRecords(data.max_bad_records))
    return arrange(train, held, data, seed)


def records_as_rows(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, bad: BadRecords
) -> tuple[list[Row], list[Row]]:
    """Return a row for each training record and each held-out one, in the order of the files.

    Raises:
        DataError: for a file or a record that cannot be used.
    """
    data = resolve_files(data)
    read = partial(_read, data=data, tokenizer=tokenizer, seed=seed, bad=bad)
    train, held = read(data.train_file)
    for file, times in zip(data.mix, data.mix_times, strict=True):
        more_train, more_held = read(file)
        train += _repeated(more_train, times, seed)
        held += more_held
    if data.eval_file is not None:
        held = _rows(data.eval_file, "validation", data, tokenizer, bad)
    return train, held


def _read(
    file: str, *, data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, bad: BadRecords
) -> tuple[list[Row], list[Row]]:
    """Return a source's rows to train on, and those to hold out unless there is an eval_file."""
    rows = _rows(file, "train", data, tokenizer, bad)
    if data.eval_file is not None:
        return rows, []
    if data.format == "custom":
        return rows, _rows(file, "validation", data, tokenizer, bad)
    if plain_texts(file, data.format):
        return _without_end(rows, file, data)
    return split_rows(rows, data.eval_fraction, seed)


def _rows(
    file: str, split: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, bad: BadRecords
) -> list[Row]:
    """Return a source's rows; only a custom file is asked for a split."""
    if data.format == "custom":
        return custom_rows(file, tokenizer, split, data.limit, data.context_length)
    texts = plain_texts(file, data.format)
    if not texts:
        encoder = RowEncoder(tokenizer, data.train_on)
        return read_rows(file, data.format, encoder, data.limit, bad)
    each = (text_rows(read_text(text), tokenizer, data.context_length) for text in texts)
    return [row for rows in each for row in rows][: data.limit]


def _repeated(rows: list[Row], times: float, seed: int) -> list[Row]:
    """Return each row `times` times; of a fraction, a random share of the rows."""
    whole = int(times)
    share = random.Random(seed).sample(rows, round(len(rows) * (times - whole)))
    return rows * whole + share


def _without_end(rows: list[Row], file: str, data: DataConfig) -> tuple[list[Row], list[Row]]:
    """Hold out the end of a plain text."""
    held = max(1, round(len(rows) * data.eval_fraction))
    if held >= len(rows):
        raise DataError(
            f"{file}: {len(rows)} rows of data.context_length={data.context_length} "
            "leave nothing to hold out; give a longer text or data.eval_file"
        )
    return rows[:-held], rows[-held:]


def arrange(train: list[Row], held: list[Row], data: DataConfig, seed: int) -> Datasets:
    """Shuffle the training rows, and pack or cut both kinds.

    Raises:
        DataError: when no row is left that has a token to learn.
    """
    random.Random(seed).shuffle(train)
    pairs = {is_pair(row) for row in (*train, *held)}
    if len(pairs) > 1:
        raise DataError(
            "some records are pairs of answers (chosen, rejected) and some are not; "
            "train on them in runs of their own"
        )
    return Datasets(
        train=_arrange(train, data, "training"),
        eval=_arrange(held, data, "held-out"),
        pairs=pairs == {True},
    )


def _arrange(rows: list[Row], data: DataConfig, name: str) -> list[Row]:
    length = data.context_length
    if long := sum(longest(row) > length for row in rows):
        done = {"cut": "cut to their beginning", "split": "split", "drop": "dropped"}
        logger.warning(
            "%d %s records of more than %d tokens %s (data.overlong=%s)",
            *(long, name, length, done[data.overlong], data.overlong),
        )
    fitting = fit(rows, length, data.overlong)
    kept = [row for row in fitting if learns(row)]
    if len(kept) < len(fitting):
        logger.warning("%d %s records without a label dropped", len(fitting) - len(kept), name)
    if kept and data.batching == "packing":
        # A row of pairs has room for the longest of them.
        kept = pack(kept, 2 * length if is_pair(kept[0]) else length)
    if not kept:
        raise DataError(
            f"no {name} record has a token to learn within data.context_length="
            f"{data.context_length}; raise it, or give records whose answers come earlier"
        )
    logger.info(
        "%d %s records in %d rows of %d tokens in all",
        len(rows),
        name,
        len(kept),
        sum(len(row["input_ids"]) for row in kept),
    )
    return kept


def batches(
    dataset: list[Row],
    data: DataConfig,
    trainer: TrainerConfig,
    *,
    rank: int,
    world_size: int,
    start_step: int,
    pad_id: int,
) -> Iterator[Batch]:
    """Return one worker's batches, an endless iterator, from micro-step `start_step` on.

    Step k is a function of (dataset, seed, k, batch size or tokens, accumulation, world_size)
    alone, so a run that starts at k continues exactly the one that stopped there. With batch_size
    the rows of an optimiser step depend on the global batch alone, however many workers and
    micro-steps share it. One shuffled pass over the rows follows another, each row once per pass; a
    step may span two passes, so no row is left over. Within a pass no two workers get the same row.
    With `padding` the rows of a step have similar lengths; with `trainer.batch_tokens`, too, a
    batch holds as many as fit, padding counted.

    Returns:
        Tensors input_ids, attention_mask and labels, each (B, T), padded on the right; T is the
        longest row of this worker's batch. Packed rows have `documents` too, each token's number
        and -1 for padding.

    Raises:
        DataError: at once, when there are fewer rows than one step of all workers takes, or one
            that is longer than a batch.
    """
    size = 1 if trainer.batch_tokens else trainer.batch_size
    together = size * world_size
    if len(dataset) < together:
        raise DataError(
            f"{len(dataset)} training rows do not fill one step of {world_size} workers x "
            f"{size} rows; give more data or a smaller data.context_length, lower "
            "trainer.batch_size, or use fewer trainer.num_workers"
        )
    passes = _passes(len(dataset), trainer.seed)
    if trainer.batch_tokens:
        tokens, seed = trainer.batch_tokens, trainer.seed
        rows_of = steps_by_tokens(dataset, passes, world_size, tokens, seed)
    elif data.batching == "padding":
        by_length = _by_length(dataset, passes, together, trainer.accumulation, trainer.seed)
        rows_of = _shared(by_length, world_size)
    else:
        rows_of = _shared(_in_order(passes, together), world_size)
    return (
        collate((dataset[i] for i in rows_of(step)[rank]), pad_id)
        for step in itertools.count(start_step)
    )


def _shared(rows_of: Callable[[int], list[int]], world_size: int) -> Callable[[int], Shares]:
    """Give each worker every world_size-th row: of sorted ones, it gets short and long ones."""
    return lambda step: [rows_of(step)[rank::world_size] for rank in range(world_size)]


def eval_batches(
    dataset: list[Row], trainer: TrainerConfig, *, rank: int, world_size: int, pad_id: int
) -> Iterator[Batch]:
    """Return one worker's share of the held-out rows, always the same.

    It is at most `trainer.eval_batches` batches; the last may be smaller. Workers get different
    rows, and equally many because they step together: up to world_size - 1 rows are left out.

    Raises:
        DataError: at once, when there are fewer rows than workers.
    """
    if len(dataset) < world_size:
        raise DataError(
            f"{len(dataset)} held-out rows do not reach {world_size} workers; give a larger "
            "data.eval_file or data.eval_fraction, a smaller data.context_length, or use fewer "
            "trainer.num_workers"
        )
    size = trainer.batch_size
    count = min(len(dataset) // world_size, trainer.eval_batches * size)
    share = dataset[rank : count * world_size : world_size]
    return (collate(share[i : i + size], pad_id) for i in range(0, count, size))


def _passes(count: int, seed: int) -> Callable[[int, int], list[int]]:
    """Return a function: row numbers between two positions of endless passes, each shuffled."""

    @lru_cache(maxsize=2)
    def shuffled(number: int) -> list[int]:
        order = list(range(count))
        random.Random(f"{seed}:{number}").shuffle(order)
        return order

    def between(start: int, stop: int) -> list[int]:
        return [shuffled(at // count)[at % count] for at in range(start, stop)]

    return between


def _in_order(passes: Callable[[int, int], list[int]], together: int) -> Callable[[int], list[int]]:
    return lambda step: passes(step * together, (step + 1) * together)


def _by_length(
    dataset: list[Row],
    passes: Callable[[int, int], list[int]],
    together: int,
    accumulation: int,
    seed: int,
) -> Callable[[int], list[int]]:
    """Return a function: row numbers of a micro-step whose rows have similar lengths.

    It sorts as many rows of the passes as make whole global batches, and shuffles these, so that
    which rows an optimiser step has depends on the size of the global batch alone.
    """
    whole = together * accumulation
    steps = max(1, len(dataset) // whole)

    @lru_cache(maxsize=1)
    def groups(number: int) -> list[list[int]]:
        taken = passes(number * steps * whole, (number + 1) * steps * whole)
        sorted_groups = groups_by_length([dataset[i] for i in taken], whole)
        random.Random(f"{seed}:{number}:steps").shuffle(sorted_groups)
        return [[taken[i] for i in group] for group in sorted_groups]

    def rows_of(micro_step: int) -> list[int]:
        step, part = divmod(micro_step, accumulation)
        return groups(step // steps)[step % steps][part * together : (part + 1) * together]

    return rows_of


def collate(rows: Iterable[Row], pad_id: int) -> Batch:
    """Return rows as tensors (B, T), padded on the right to the longest."""
    rows = list(rows)
    padding = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED, "documents": -1}
    return {
        key: pad_sequence(
            [torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value
        )
        for key, value in padding.items()
        if key in rows[0]
    }
