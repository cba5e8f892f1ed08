"""Rows from every format, and batches that workers share."""

from __future__ import annotations

import json
import logging
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llamahome.config import DataConfig, TrainerConfig, checkout
from llamahome.data import IGNORED, BadRecords, DataError, Row, RowEncoder, read_rows
from train.data import batches, build_datasets, eval_batches, resolve_files
from train.recipes import groups_by_length

REPOSITORY = checkout()
PAD = 999
Batch = dict[str, Tensor]

CUSTOM = """
def row(number, tokens=4):
    ids = [number] * tokens
    return {"input_ids": ids, "attention_mask": [1] * tokens, "labels": ids}

def get_custom_dataset(config, tokenizer, split):
    return [row(1), row(2), row(3)] if split == "train" else [row(8)]

def as_tensors(config, tokenizer, split):
    import torch
    return [{key: torch.tensor(value) for key, value in row(5).items()}] * 2

def without_labels(config, tokenizer, split):
    return [row(1), {"input_ids": [1], "attention_mask": [1]}]

def uneven(config, tokenizer, split):
    return [{**row(1), "labels": [1]}]

def ragged(config, tokenizer, split):
    return [{**row(1), "labels": [[1], [1, 2]]}]

def own_mistake(config, tokenizer, split):
    return tokenizer.no_such_thing
"""


def make_row(number: int, tokens: int) -> Row:
    """Build a row with its number in every token; the first half is not learned."""
    ids = [number] * tokens
    labels = [IGNORED] * (tokens // 2) + ids[tokens // 2 :]
    return {"input_ids": ids, "attention_mask": [1] * tokens, "labels": labels}


def make_rows(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [make_row(number, draw.randint(2, 40)) for number in range(count)]


def flat(rows: list[Row], key: str) -> list[int]:
    return [value for row in rows for value in row[key]]


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


def encoded_rows(file: str, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    return read_rows(file, "chat", RowEncoder(tokenizer), None, BadRecords(0))


@pytest.fixture
def chat_data(chats: Path) -> DataConfig:
    return DataConfig(train_file=str(chats), context_length=100, eval_fraction=0.2)


@pytest.fixture
def custom_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(CUSTOM)
    return file


def custom_data(file: Path, function: str = "", **changes: Any) -> DataConfig:
    return DataConfig(
        format="custom", train_file=f"{file}{function}", batching="padding", **changes
    )


def test_groups_by_length_hold_similar_lengths() -> None:
    rows = make_rows(12)
    groups = groups_by_length(rows, 4)
    assert sorted(i for group in groups for i in group) == list(range(12))
    lengths = [len(rows[i]["input_ids"]) for group in groups for i in group]
    assert lengths == sorted(lengths)


def test_packed_rows_hold_every_record_but_those_held_out(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = replace(chat_data, context_length=200)
    built = build_datasets(data, byte_tokenizer, seed=0)
    encoded = encoded_rows(data.train_file, byte_tokenizer)
    both = built.train + built.eval
    for key in ("input_ids", "labels"):
        assert Counter(flat(both, key)) == Counter(flat(encoded, key))
    joined = flat(built.train, "input_ids")
    found = [row for row in encoded if _contains(joined, row["input_ids"])]
    assert len(found) == 32


def _contains(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


def test_seed_orders_what_is_packed_together(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = replace(chat_data, eval_file=chat_data.train_file)
    one, again, other = (build_datasets(data, byte_tokenizer, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.train != other.train
    assert one.eval == other.eval


def test_long_rows_are_cut_and_counted(
    chat_data: DataConfig,
    byte_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = replace(chat_data, batching="padding", context_length=80)
    with caplog.at_level(logging.INFO, logger="train.data"):
        built = build_datasets(data, byte_tokenizer, seed=0)
    lengths = [len(row["input_ids"]) for row in built.train]
    assert max(lengths) == 80
    rows = encoded_rows(data.train_file, byte_tokenizer)
    long = sum(len(row["input_ids"]) > 80 for row in rows)
    cut = re.findall(r"(\d+) (?:training|held-out) records of more than 80 tokens cut", caplog.text)
    assert sum(map(int, cut)) == long > 0


def test_rows_without_a_label_are_dropped_and_counted(
    custom_file: Path, byte_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    custom_file.write_text(
        CUSTOM
        + "def get_custom_dataset(config, tokenizer, split):\n"
        + "    first_only = {**row(2), 'labels': [2, -100, -100, -100]}\n"
        + "    return [row(1), {**row(2), 'labels': [-100] * 4}, first_only]\n"
    )
    built = build_datasets(custom_data(custom_file), byte_tokenizer, seed=0)
    assert [row["input_ids"][0] for row in built.train] == [1]
    assert "2 training records without a label dropped" in caplog.text


def test_no_row_left_is_an_error_with_the_cure(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = replace(chat_data, batching="padding", context_length=5)
    with pytest.raises(DataError, match=r"no training record .* data\.context_length=5; raise it"):
        build_datasets(data, byte_tokenizer, seed=0)


def test_limit_takes_the_first_records(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = replace(chat_data, batching="padding", limit=5, context_length=500)
    built = build_datasets(data, byte_tokenizer, seed=0)
    expected = sorted(row["input_ids"] for row in encoded_rows(data.train_file, byte_tokenizer)[:5])
    assert sorted(row["input_ids"] for row in built.train + built.eval) == expected
    assert len(built.eval) == 1


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


def test_custom_file_gives_its_own_splits(
    custom_file: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    built = build_datasets(custom_data(custom_file), byte_tokenizer, seed=0)
    assert sorted(row["input_ids"] for row in built.train) == [[n] * 4 for n in (1, 2, 3)]
    assert [row["input_ids"] for row in built.eval] == [[8] * 4]
    limited = build_datasets(custom_data(custom_file, limit=2), byte_tokenizer, seed=0)
    assert sorted(row["input_ids"] for row in limited.train) == [[1] * 4, [2] * 4]


def test_custom_function_is_named_after_a_colon_and_may_give_tensors(
    custom_file: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = custom_data(custom_file, ":as_tensors", eval_file=str(custom_file))
    built = build_datasets(data, byte_tokenizer, seed=0)
    assert [row["labels"] for row in built.train] == [[5] * 4] * 2
    assert [row["input_ids"] for row in built.eval] == [[8] * 4]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (":missing", r"mine\.py:missing: has no function missing; define it"),
        (":without_labels", r"mine\.py:without_labels: train row 1: labels is missing"),
        (":uneven", r"train row 0: input_ids \[4\], .*labels \[1\]; the three must be flat"),
        (":ragged", r"train row 0: expected sequence .*; give flat lists of integers"),
    ],
)
def test_custom_file_that_does_not_fit_is_named(
    function: str,
    message: str,
    custom_file: Path,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(DataError, match=message):
        build_datasets(custom_data(custom_file, function), byte_tokenizer, seed=0)


def test_mistake_in_a_custom_file_is_shown_as_it_is(
    custom_file: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        build_datasets(custom_data(custom_file, ":own_mistake"), byte_tokenizer, seed=0)


def test_files_resolve_against_the_working_directory_then_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = DataConfig(eval_file="mine.jsonl")
    (tmp_path / "mine.jsonl").write_text(json.dumps({}))
    resolved = resolve_files(shipped)
    assert resolved.train_file == str(REPOSITORY / shipped.train_file)
    assert resolved.eval_file == str(tmp_path.resolve() / "mine.jsonl")
    assert resolve_files(resolved) == resolved
    (tmp_path / "datasets").mkdir()
    (tmp_path / shipped.train_file).write_text(json.dumps({}))
    assert resolve_files(shipped).train_file == str(tmp_path.resolve() / shipped.train_file)


def test_missing_file_is_named_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        resolve_files(DataConfig(train_file="nowhere.jsonl"))
    for place in ("data.train_file='nowhere.jsonl'", tmp_path, REPOSITORY / "nowhere.jsonl"):
        assert str(place) in str(error.value)


def test_custom_file_must_be_python(tmp_path: Path) -> None:
    data = DataConfig(format="custom", train_file="rows.jsonl")
    with pytest.raises(DataError, match=r"data\.train_file='rows\.jsonl' must be file\.py"):
        resolve_files(data)


def test_importing_llama_recipes_leaves_the_warning_filters_alone() -> None:
    program = (
        "import warnings\n"
        "from train.recipes import groups_by_length, quiet_recipes\n"
        "warnings.simplefilter('error')\n"
        "filters = list(warnings.filters)\n"
        "row = {key: [1, 1] for key in ('input_ids', 'attention_mask', 'labels')}\n"
        "assert len(groups_by_length([row], 1)) == 1\n"
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


def test_a_text_holds_its_end_out(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(97 + i // 4) for i in range(40)))
    data = DataConfig(
        format="text", train_file=str(file), context_length=4, eval_fraction=0.2, limit=8
    )
    built = build_datasets(data, byte_tokenizer, seed=0)
    texts = ["".join(byte_tokenizer.decode(row["input_ids"])) for row in built.train]
    assert sorted(texts) == ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]
    assert [byte_tokenizer.decode(row["input_ids"]) for row in built.eval] == ["gggg", "hhhh"]
    other = replace(data, eval_file=str(file), limit=3)
    assert len(build_datasets(other, byte_tokenizer, seed=0).eval) == 3
    with pytest.raises(DataError, match="nothing to hold out"):
        build_datasets(replace(data, limit=2, context_length=39), byte_tokenizer, seed=0)


def test_a_mixture_takes_each_source_as_often_as_it_says(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    for name in "abc":
        lines = [json.dumps({"text": f"{name}{i}"}) for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    data = DataConfig(
        train_file=files[0],
        mix=files[1:],
        mix_times=[0.5, 2.25],
        eval_file=files[0],
        batching="padding",
        context_length=16,
    )
    built = build_datasets(data, byte_tokenizer, seed=0)
    texts = Counter(byte_tokenizer.decode(row["input_ids"])[:2] for row in built.train)
    assert [texts[f"a{i}"] for i in range(8)] == [1] * 8
    assert sorted(texts[f"b{i}"] for i in range(8)) == [0] * 4 + [1] * 4
    assert sorted(texts[f"c{i}"] for i in range(8)) == [2] * 6 + [3] * 2
    assert len(built.eval) == 8
    assert build_datasets(data, byte_tokenizer, seed=0) == built
    held = build_datasets(replace(data, eval_file=None), byte_tokenizer, seed=0)
    assert len(held.eval) == 3
    kept = {byte_tokenizer.decode(row["input_ids"]) for row in held.train}
    assert not kept & {byte_tokenizer.decode(row["input_ids"]) for row in held.eval}


def test_a_mixture_of_custom_files_has_one_held_out_file(
    custom_file: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = custom_data(
        custom_file, mix=[f"{custom_file}:as_tensors"], mix_times=[1.0], eval_file=str(custom_file)
    )
    built = build_datasets(data, byte_tokenizer, seed=0)
    assert sorted(row["input_ids"][0] for row in built.train) == [1, 2, 3, 5, 5]
    assert [row["input_ids"][0] for row in built.eval] == [8]


def test_a_mixture_is_resolved_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.jsonl").write_text(json.dumps({}))
    resolved = resolve_files(DataConfig(mix=["more.jsonl"], mix_times=[2.0]))
    assert resolved.mix == [str(tmp_path.resolve() / "more.jsonl")]
    with pytest.raises(DataError, match=r"data\.mix='no\.jsonl': no such file"):
        resolve_files(DataConfig(mix=["no.jsonl"], mix_times=[1.0]))


def test_sources_resolve_by_pattern_folder_split_and_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{}")
    here = str(tmp_path.resolve())
    for name, expected in {
        "in": f"{here}/in",
        "in/*.jsonl": f"{here}/in/*.jsonl",
        "in:test": f"{here}/in:test",
        "owner/name": "owner/name",
        "owner/name:test": "owner/name:test",
    }.items():
        assert resolve_files(DataConfig(train_file=name)).train_file == expected
    for name in ("in/*.parquet", "owner/name.jsonl", "owner/name/more"):
        with pytest.raises(DataError, match="no such file; looked at"):
            resolve_files(DataConfig(train_file=name))


def test_every_text_format_gives_rows(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "x" * n}) for n in (1, 2, 3)))
    data = DataConfig(
        format="text", train_file=str(tmp_path / "a.jsonl"), context_length=8, batching="padding"
    )
    built = build_datasets(data, byte_tokenizer, seed=0)
    assert sorted(len(row["labels"]) for row in built.train + built.eval) == [2, 3, 4]
    (tmp_path / "b.txt").write_text("y" * 80)
    built = build_datasets(
        replace(data, format="auto", train_file=str(tmp_path / "b.txt")), byte_tokenizer, seed=0
    )
    assert [len(row["labels"]) for row in built.train] == [8] * 9
