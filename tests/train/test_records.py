"""Rows from every format, tokenised once, held out, mixed and packed."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.config import DataConfig, TrainerConfig, checkout
from llamahome.data import DataError, Row
from tests.train.plain_rows import plain_datasets, plain_rows
from train.data import batches
from train.packing import row_lengths
from train.records import build_datasets, held_out, resolve_files

REPOSITORY = checkout()


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


def flat(rows: list[Row], key: str) -> list[int]:
    return [value for row in rows for value in row[key]]


def encoded_rows(file: str, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    return plain_rows(file, "train", DataConfig(format="chat"), tokenizer)


@pytest.fixture
def chat_data(chats: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(
        train_file=str(chats),
        context_length=100,
        eval_fraction=0.2,
        cache_dir=str(tmp_path / "tokens"),
    )


@pytest.fixture
def custom_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(CUSTOM)
    return file


def custom_data(file: Path, function: str = "", **changes: Any) -> DataConfig:
    return DataConfig(
        format="custom", train_file=f"{file}{function}", batching="padding", **changes
    )


def test_packed_rows_hold_every_record_but_those_held_out(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = replace(chat_data, context_length=200)
    built = build_datasets(data, byte_tokenizer, seed=0)
    encoded = encoded_rows(data.train_file, byte_tokenizer)
    both = [*built.train, *built.eval]
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
    assert list(one.train) == list(again.train)
    assert list(one.train) != list(other.train)
    assert list(one.eval) == list(again.eval) == list(other.eval)


def test_long_rows_are_cut_and_counted(
    chat_data: DataConfig,
    byte_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = replace(chat_data, batching="padding", context_length=80)
    with caplog.at_level(logging.INFO, logger="train.records"):
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
    assert sorted(row["input_ids"] for row in [*built.train, *built.eval]) == expected
    assert len(built.eval) == 1


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
    assert list(build_datasets(data, byte_tokenizer, seed=0).train) == list(built.train)
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


def test_urls_are_looked_up_here(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    assert resolve_files(DataConfig(train_file=f"file://{file}")).train_file == str(file)
    for url, message in {
        "file:///no/a.jsonl": r"data\.train_file='/no/a\.jsonl': no such file",
        "memory://a.jsonl": r"data\.train_file='memory://a\.jsonl' is seen by no worker; give",
        "nowhere://a.jsonl": r"nowhere://a\.jsonl: cannot be opened \(Protocol not known: nowhere",
    }.items():
        with pytest.raises(DataError, match=message):
            resolve_files(DataConfig(train_file=url))


@pytest.mark.parametrize("changes", [{}, {"batching": "padding"}, {"batch_tokens": 400}])
def test_a_run_that_stopped_within_a_pass_goes_on_exactly(
    chat_data: DataConfig, byte_tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any]
) -> None:
    tokens = changes.get("batch_tokens")
    batching = "padding" if tokens else changes.get("batching", "packing")
    data = replace(chat_data, batching=batching, context_length=200)
    trainer = TrainerConfig(batch_size=2, batch_tokens=tokens)

    def taken(start: int, count: int) -> list[dict[str, Any]]:
        rows = build_datasets(data, byte_tokenizer, seed=0).train
        share = {"rank": 1, "world_size": 2, "start_step": start, "pad_id": 0}
        found = islice(batches(rows, data, trainer, **share), count)
        return [{key: tensor.tolist() for key, tensor in batch.items()} for batch in found]

    whole = taken(0, 30)
    for start in (1, 5, 11, 29):
        assert taken(start, 30 - start) == whole[start:]
    assert whole[1:] != whole[:-1]


def test_every_text_format_gives_rows(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "x" * n}) for n in (1, 2, 3)))
    data = DataConfig(
        format="text", train_file=str(tmp_path / "a.jsonl"), context_length=8, batching="padding"
    )
    built = build_datasets(data, byte_tokenizer, seed=0)
    assert sorted(len(row["labels"]) for row in [*built.train, *built.eval]) == [2, 3, 4]
    (tmp_path / "b.txt").write_text("y" * 80)
    built = build_datasets(
        replace(data, format="auto", train_file=str(tmp_path / "b.txt")), byte_tokenizer, seed=0
    )
    assert [len(row["labels"]) for row in built.train] == [8] * 9


FORMATS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}. " * (n % 5 + 1)},
                {"role": "assistant", "content": f"It is {n}.", "train": n % 3 > 0},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": "<eos>" * (n % 2) + "No more. " * (n % 7 + 1)},
            ]
        }
        for n in range(40)
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "a" * n}, {"from": "gpt", "value": "b" * n}]}
        for n in range(1, 40)
    ],
    "alpaca": [
        {"instruction": f"Count to {n}.", "input": "x" * (n % 3), "output": "1 " * n}
        for n in range(1, 40)
    ],
    "completion": [{"prompt": "p" * n, "completion": "c" * (60 - n)} for n in range(1, 40)],
    "preference": [
        {"prompt": f"Say {n}.", "chosen": "y" * n, "rejected": "z" * (50 - n)} for n in range(1, 40)
    ],
    "text": [{"text": "t" * n} for n in range(1, 40)],
    "tokens": [
        {"input_ids": [*range(n)], "labels": [*range(100, 100 + n - 2), -100, 7]}
        for n in range(2, 40)
    ],
}


@pytest.mark.parametrize("batching", ["packing", "padding"])
@pytest.mark.parametrize("format", FORMATS)
def test_rows_from_disk_are_those_of_lists_in_memory(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, format: str, batching: str
) -> None:
    records = FORMATS[format]
    for name, part in {"a": records, "b": records[::3]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)) + "\n{broken\n")
    data = DataConfig(
        train_file=str(tmp_path / "a.jsonl"),
        mix=[str(tmp_path / "b.jsonl")],
        mix_times=[1.5],
        batching=batching,
        context_length=110,
        max_bad_records=3,
        cache_dir=str(tmp_path / "tokens"),
    )
    changes: list[dict[str, Any]] = [
        {},
        {"train_on": "all", "overlong": "drop", "context_length": 180},
        {"train_on": "last", "limit": 7, "eval_fraction": 0.5},
        {"eval_file": str(tmp_path / "b.jsonl")},
    ]
    if format != "preference":
        changes.append({"overlong": "split", "context_length": 19})
    for change in changes:
        own = replace(data, **change)
        train, held = plain_datasets(own, byte_tokenizer, seed=3)
        for _ in ("made", "from the cache"):
            built = build_datasets(own, byte_tokenizer, seed=3)
            assert (list(built.train), list(built.eval)) == (train, held)
            assert row_lengths(built.train) == [len(row["labels"]) for row in train]
            assert built.train[:3] == train[:3]
            assert built.train[-1] == train[-1]
            assert built.pairs == (format == "preference")


def test_texts_and_custom_rows_are_those_of_lists_in_memory(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, custom_file: Path
) -> None:
    for name, text in {"a": "one two\r\n" * 30, "b": "three" * 9}.items():
        (tmp_path / f"{name}.txt").write_text(text, newline="")
    custom_file.write_text(
        CUSTOM
        + "def get_custom_dataset(config, tokenizer, split):\n"
        + "    rows = [{**row(n), 'attention_mask': [1, 1, n % 2, 0]} for n in range(20)]\n"
        + "    return rows if split == 'train' else rows[:4]\n"
    )
    texts = DataConfig(
        train_file=str(tmp_path / "*.txt"),
        context_length=16,
        eval_fraction=0.3,
        cache_dir=str(tmp_path / "tokens"),
    )
    changes = [texts, replace(texts, limit=4), replace(texts, batching="padding")]
    for data in (*changes, custom_data(custom_file, context_length=10)):
        built = build_datasets(data, byte_tokenizer, seed=0)
        rows = plain_datasets(data, byte_tokenizer, seed=0)
        assert (list(built.train), list(built.eval)) == rows


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(100, 0.1, 10), (3, 0.01, 1), (2, 0.99, 1)]
)
def test_a_share_is_held_out_by_the_seed(count: int, fraction: float, held: int) -> None:
    is_held = held_out(count, fraction, seed=3)
    assert (len(is_held), is_held.sum()) == (count, held)
    assert (held_out(count, fraction, 3) == is_held).all()
    assert any((held_out(count, fraction, seed) != is_held).any() for seed in range(9))


def test_one_record_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 record cannot be split"):
        held_out(1, 0.5, 0)
