"""Batches by tokens: within the limit, in step over all workers, each row once in a pass."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from llamahome.data import DataError
from tests.train.test_data import make_row, make_rows, numbers, same, take
from train.batch_tokens import cut_into_steps

TOKENS = 100


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_hold_what_fits_and_each_row_once(workers: int) -> None:
    lengths = [len(row["input_ids"]) for row in make_rows(60)]
    steps = cut_into_steps(lengths, workers, TOKENS)
    assert all(len(step) == workers for step in steps)
    batches = [batch for step in steps for batch in step]
    assert sorted(row for batch in batches for row in batch) == list(range(60))
    assert all(len(batch) * max(lengths[row] for row in batch) <= TOKENS for batch in batches)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)
    # No two neighbours fit together, except where a batch was cut for the workers' sake.
    loose = sum(
        lengths[one[0]] * (len(one) + len(other)) <= TOKENS for one, other in pairwise(batches)
    )
    assert loose <= 2 * (workers - 1)


def test_rows_are_shared_out_singly_where_workers_are_many() -> None:
    assert cut_into_steps([3, 9, 5, 7], 4, 100) == [[[1], [3], [2], [0]]]


@pytest.mark.parametrize(("rows", "workers"), [(60, 1), (60, 2), (61, 2), (59, 3)])
def test_every_row_comes_once_in_a_pass(rows: int, workers: int) -> None:
    dataset = make_rows(rows)
    options = {"batching": "padding", "world_size": workers, "tokens": TOKENS}
    shares = [take(dataset, 400, rank=rank, **options) for rank in range(workers)]
    assert all(batch["input_ids"].numel() <= TOKENS for share in shares for batch in share)
    seen: Counter[int] = Counter()
    for step in zip(*shares, strict=True):
        seen.update(numbers(list(step)))
        assert max(seen.values()) - min(seen[row] for row in range(rows)) <= 2
    whole = sum(seen.values()) / rows
    assert whole > 20
    assert all(abs(count - whole) < 2 for count in seen.values())


def test_a_resumed_run_sees_what_the_uninterrupted_one_would() -> None:
    """Passes of 23 rows over two workers differ in their number of steps."""
    dataset = make_rows(23)
    options = {"batching": "padding", "rank": 1, "world_size": 2, "tokens": TOKENS}
    whole = take(dataset, 60, **options)
    for start in (1, 4, 7, 20, 33, 59):
        assert same(take(dataset, 60 - start, start=start, **options), whole[start:])
    assert not same(take(dataset, 60, seed=1, **options), whole)


def test_a_row_that_is_longer_than_a_batch_is_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"trainer\.batch_tokens=100 holds no row of 101 tokens"):
        take([make_row(0, 101)], 0, batching="padding", tokens=TOKENS)


def test_too_few_rows_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="2 training rows do not fill one step of 3 workers x 1"):
        take(make_rows(2), 0, batching="padding", tokens=TOKENS, world_size=3)
