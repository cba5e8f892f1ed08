"""Rows of a source, and records that are skipped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.data import BadRecords, DataError, RowOptions, TokenCache, TokenTable, read_rows


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five lines: two that cannot be used among three that can."""
    lines = [json.dumps({"text": letter}) for letter in "abc"]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join([lines[0], "{broken", lines[1], '{"text": 3}', lines[2]]))
    return file


def read(
    file: Path, tokenizer: PreTrainedTokenizerFast, bad: BadRecords, limit: int | None = None
) -> TokenTable:
    cache = TokenCache(file.parent / "tokens", 10**9)
    return read_rows(str(file), RowOptions("auto", "assistant", 8, limit), tokenizer, bad, cache)


def test_bad_records_are_skipped_and_listed_also_when_they_come_from_the_cache(
    mixed: Path, byte_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("mixed.jsonl", "moved.jsonl"):
        file = mixed.rename(mixed.with_name(name))
        mixed = file
        bad = BadRecords(2)
        with caplog.at_level(logging.WARNING):
            rows = read(file, byte_tokenizer, bad)
        assert byte_tokenizer.decode(rows.columns["input_ids"].tolist()) == "a<eos>b<eos>c<eos>"
        assert len(bad.reasons) == 2
        assert f"skipped 1/2: {file}:2: not JSON" in caplog.text
        assert f"skipped 2/2: {file}:4: text is int" in caplog.text
    assert len(list((mixed.parent / "tokens").glob("*/entry.json"))) == 1


def test_more_bad_records_than_the_limit_are_refused(
    mixed: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=r"mixed\.jsonl:2: not JSON"):
        read(mixed, byte_tokenizer, BadRecords(0))
    with pytest.raises(DataError, match=r"mixed\.jsonl:4: .*; data.max_bad_records=1 skips no"):
        read(mixed, byte_tokenizer, BadRecords(1))


def test_the_limit_counts_good_records_and_reads_no_further(
    mixed: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    bad = BadRecords(1)
    assert len(read(mixed, byte_tokenizer, bad, limit=2)) == 2
    assert len(bad.reasons) == 1


def test_a_source_without_a_good_record_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl: holds no record that can be used"):
        read(file, byte_tokenizer, BadRecords(9))
