"""Rows with facts, and questions about them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.config import DataConfig
from retrieval import FACTS, get_custom_dataset
from train.records import build_datasets

DATA = DataConfig(
    format="custom",
    train_file="datasets/retrieval.py",
    context_length=2048,
    batching="padding",
    limit=12,
)


@pytest.fixture(scope="module")
def texts(byte_tokenizer: PreTrainedTokenizerFast) -> list[str]:
    rows = build_datasets(DATA, byte_tokenizer, seed=0).train
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert all(0.95 * 2048 < len(row["input_ids"]) <= 2048 for row in rows)
    return [str(byte_tokenizer.decode(row["input_ids"])) for row in rows]


def test_every_row_asks_for_the_facts_in_it(texts: list[str]) -> None:
    assert len(texts) == 12
    for text in texts:
        novel, *answers = text.split("<|assistant|>")
        assert len(answers) == FACTS
        for answer in answers:
            (code,) = re.findall(r"\d{5,6}", answer.partition("<eos>")[0])
            assert novel.count(code) == 1


def test_facts_are_anywhere_in_the_text(texts: list[str]) -> None:
    places = [
        match.start() / len(text)
        for text in texts
        for match in re.finditer(r"\d{5,6}", text.partition("<eos>")[0])
    ]
    assert min(places) < 0.15
    assert max(places) > 0.55
    assert len({tuple(re.findall(r"\d{5,6}", text)) for text in texts}) == len(texts)


def test_rows_are_reproducible_and_held_out_ones_differ(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = SimpleNamespace(context_length=2048)
    train, again, held = (
        [row["input_ids"] for row in get_custom_dataset(config, byte_tokenizer, split)]
        for split in ("train", "train", "validation")
    )
    assert train == again
    assert not {tuple(row[:400]) for row in train} & {tuple(row[:400]) for row in held}
    assert len(train) > 10 * len(held) > 0


def test_a_context_too_small_for_its_questions_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ValueError, match="context_length=256: 6 facts"):
        get_custom_dataset(SimpleNamespace(context_length=256), byte_tokenizer, "validation")
