"""Batches that workers share."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor

from llamahome.config import DataConfig, TrainerConfig, checkout
from llamahome.data import IGNORED, DataError, Row
from train.data import batches, eval_batches
from train.recipes import groups_by_length

REPOSITORY = checkout()
PAD = 999
Batch = dict[str, Tensor]


def make_row(number: int, tokens: int) -> Row:
    """Build a row with its number in every token; the first half is not learned."""
    ids = [number] * tokens
    labels = [IGNORED] * (tokens // 2) + ids[tokens // 2 :]
    return {"input_ids": ids, "attention_mask": [1] * tokens, "labels": labels}


def make_rows(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [make_row(number, draw.randint(2, 40)) for number in range(count)]


def take(
    dataset: list[Row],
    steps: int,
    *,
    batching: str = "packing",
    start: int = 0,
    batch_size: int = 2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    tokens: int | None = None,
) -> list[Batch]:
    """Take `steps` batches from `start` on."""
    data = DataConfig(batching=batching)
    trainer = TrainerConfig(batch_size=batch_size, batch_tokens=tokens, seed=seed)
    share = {"rank": rank, "world_size": world_size, "pad_id": PAD}
    return list(islice(batches(dataset, data, trainer, start_step=start, **share), steps))


def numbers(taken: list[Batch]) -> list[int]:
    return [int(number) for batch in taken for number in batch["input_ids"][:, 0]]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


def test_groups_by_length_hold_similar_lengths() -> None:
    rows = make_rows(12)
    groups = groups_by_length([len(row["input_ids"]) for row in rows], 4)
    assert sorted(i for group in groups for i in group) == list(range(12))
    lengths = [len(rows[i]["input_ids"]) for group in groups for i in group]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("batching", ["packing", "padding"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_share_each_pass_without_overlap(batching: str, world_size: int) -> None:
    rows = make_rows(24)
    steps = 24 // (2 * world_size)
    shares = [
        numbers(take(rows, steps, batching=batching, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(number for share in shares for number in share) == list(range(24))


@pytest.mark.parametrize("batching", ["packing", "padding"])
def test_rows_beyond_whole_steps_are_not_left_out(batching: str) -> None:
    rows = make_rows(7)
    # Seven passes of seven rows, or seven rounds of the six rows that make whole steps.
    steps = 7 * 7 if batching == "packing" else 7 * 3
    counts = Counter(numbers(take(rows, steps, batching=batching)))
    assert counts == dict.fromkeys(range(7), 2 * steps // 7)


@pytest.mark.parametrize("batching", ["packing", "padding"])
def test_a_resumed_run_sees_what_the_uninterrupted_one_would(batching: str) -> None:
    rows = make_rows(23)
    whole = take(rows, 40, batching=batching, rank=1, world_size=2)
    for start in (1, 4, 5, 11, 12, 30):
        resumed = take(rows, 40 - start, batching=batching, rank=1, world_size=2, start=start)
        assert same(resumed, whole[start:])


@pytest.mark.parametrize("batching", ["packing", "padding"])
def test_order_depends_on_seed_and_pass_and_not_on_the_global_random_state(batching: str) -> None:
    rows = make_rows(24)
    random.seed(1)
    before = random.getstate()
    one = take(rows, 24, batching=batching)
    assert random.getstate() == before
    random.seed(2)
    assert same(one, take(rows, 24, batching=batching))
    assert not same(one, take(rows, 24, batching=batching, seed=1))
    assert numbers(one[:12]) != numbers(one[12:])


def test_padding_batches_rows_of_similar_length_over_all_workers() -> None:
    rows = make_rows(24)
    shares = [take(rows, 6, batching="padding", rank=rank, world_size=2) for rank in range(2)]
    lengths = [
        sorted(int(n) for share in step for n in share["attention_mask"].sum(dim=1))
        for step in zip(*shares, strict=True)
    ]
    in_order = sorted(lengths)
    assert [n for step in in_order for n in step] == sorted(n for step in lengths for n in step)
    assert lengths != in_order


def test_batches_are_padded_on_the_right() -> None:
    (batch,) = take([make_row(1, 3), make_row(2, 5)], 1)
    short = int((batch["input_ids"][:, 0] == 1).nonzero())
    assert batch["input_ids"][short].tolist() == [1, 1, 1, PAD, PAD]
    assert batch["attention_mask"][short].tolist() == [1, 1, 1, 0, 0]
    assert batch["labels"][short].tolist() == [IGNORED, 1, 1, IGNORED, IGNORED]
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_too_few_training_rows_are_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"7 training rows do not fill one step of 2 workers x 4"):
        take(make_rows(7), 0, batch_size=4, world_size=2)


@pytest.mark.parametrize(("count", "limit", "sizes"), [(11, 9, [2, 2, 1]), (12, 2, [2, 2])])
def test_eval_shares_are_equal_disjoint_and_repeatable(
    count: int, limit: int, sizes: list[int]
) -> None:
    rows = make_rows(count)

    def share(rank: int) -> list[Batch]:
        trainer = TrainerConfig(batch_size=2, eval_batches=limit)
        return list(eval_batches(rows, trainer, rank=rank, world_size=2, pad_id=PAD))

    assert same(share(0), share(0))
    assert [[len(batch["labels"]) for batch in share(rank)] for rank in (0, 1)] == [sizes, sizes]
    seen = numbers(share(0)) + numbers(share(1))
    assert sorted(seen) == list(range(2 * sum(sizes)))


def test_too_few_held_out_rows_are_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"1 held-out rows do not reach 2 workers; give a larger"):
        eval_batches(make_rows(1), TrainerConfig(), rank=0, world_size=2, pad_id=0)


def test_importing_llama_recipes_leaves_the_warning_filters_alone() -> None:
    program = (
        "import warnings\n"
        "from train.recipes import groups_by_length, quiet_recipes\n"
        "warnings.simplefilter('error')\n"
        "filters = list(warnings.filters)\n"
        "assert len(groups_by_length([2], 1)) == 1\n"
        "assert warnings.filters == filters\n"
        "try:\n"
        "    with quiet_recipes():\n"
        "        warnings.warn('of another package', UserWarning)\n"
        "except UserWarning as warning:\n"
        "    print(warning)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("of another package\n", "", 0)
