"""Batches that hold at most so many tokens, padding counted, and as many for every worker."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache

from llamahome.data import DataError

Shares = list[list[int]]  # row numbers of one step, for each worker


def steps_by_tokens(
    lengths: Sequence[int],
    passes: Callable[[int, int], list[int]],
    workers: int,
    tokens: int,
    seed: int,
) -> Callable[[int], Shares]:
    """Return a function: the rows of a step, whose batches hold at most `tokens` tokens.

    It sorts the rows of a pass by length, cuts them into batches, and shuffles the steps that these
    make. Up to workers - 1 rows of a pass come with the next one.

    Args:
        lengths: tokens of each row.
        passes: gives the row numbers between two positions of endless shuffled passes.

    Raises:
        DataError: at once, for a row that is longer than a batch.
    """
    if max(lengths) > tokens:
        raise DataError(
            f"trainer.batch_tokens={tokens} holds no row of {max(lengths)} tokens; raise it, or "
            "lower data.context_length"
        )
    together = len(lengths) // workers * workers
    ends = [0]  # steps before the end of each pass

    @lru_cache(maxsize=1)
    def steps_of(number: int) -> list[Shares]:
        taken = passes(number * together, (number + 1) * together)
        steps = cut_into_steps([lengths[i] for i in taken], workers, tokens)
        random.Random(f"{seed}:{number}:steps").shuffle(steps)
        return [[[taken[i] for i in batch] for batch in step] for step in steps]

    def shares(step: int) -> Shares:
        while step >= ends[-1]:
            ends.append(ends[-1] + len(steps_of(len(ends) - 1)))
        number = bisect_right(ends, step) - 1
        return steps_of(number)[step - ends[number]]

    return shares


def cut_into_steps(lengths: Sequence[int], workers: int, tokens: int) -> list[Shares]:
    """Return steps of one batch for each worker, the longest rows first, each row in one batch.

    Args:
        lengths: of as many rows as a multiple of `workers`, none above `tokens`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batches: list[list[int]] = []
    taken = 0
    while taken < len(order):
        end = taken + tokens // lengths[order[taken]]
        batches.append(order[taken:end])
        taken = end
    while len(batches) % workers:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        rows = batches[largest]
        batches[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return [batches[i : i + workers] for i in range(0, len(batches), workers)]
