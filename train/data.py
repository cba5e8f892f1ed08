"""Batches of rows, addressed by (seed, step)."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llamahome.config import DataConfig, TrainerConfig
from llamahome.data import IGNORED, DataError, Row
from train.batch_tokens import Shares, steps_by_tokens
from train.packing import row_lengths
from train.recipes import groups_by_length

Batch = dict[str, Tensor]


def batches(
    dataset: Sequence[Row],
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
        rows_of = steps_by_tokens(row_lengths(dataset), passes, world_size, tokens, seed)
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
    dataset: Sequence[Row], trainer: TrainerConfig, *, rank: int, world_size: int, pad_id: int
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
    def shuffled(number: int) -> array[int]:
        order = array("q", range(count))
        random.Random(f"{seed}:{number}").shuffle(order)
        return order

    def between(start: int, stop: int) -> list[int]:
        return [shuffled(at // count)[at % count] for at in range(start, stop)]

    return between


def _in_order(passes: Callable[[int, int], list[int]], together: int) -> Callable[[int], list[int]]:
    return lambda step: passes(step * together, (step + 1) * together)


def _by_length(
    dataset: Sequence[Row],
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
    lengths = row_lengths(dataset)

    @lru_cache(maxsize=1)
    def groups(number: int) -> list[list[int]]:
        taken = passes(number * steps * whole, (number + 1) * steps * whole)
        sorted_groups = groups_by_length([lengths[i] for i in taken], whole)
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
