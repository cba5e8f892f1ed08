"""Rows of a source, and records that are skipped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.data import BadRecords, DataError, RowEncoder, read_rows


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Five lines: two that cannot be used among three that can."""
    lines = [json.dumps({"text": letter}) for letter in "abc"]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join([lines[0], "{broken", lines[1], '{"text": 3}', lines[2]]))
    return str(file)


def test_bad_records_are_skipped_and_listed_up_to_the_limit(
    mixed: str, byte_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    bad = BadRecords(2)
    with caplog.at_level(logging.WARNING):
        rows = read_rows(mixed, "auto", RowEncoder(byte_tokenizer), None, bad)
    texts = [byte_tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts == ["a<eos>", "b<eos>", "c<eos>"]
    assert len(bad.reasons) == 2
    assert "skipped 1/2: " + mixed + ":2: not JSON" in caplog.text
    assert "skipped 2/2: " + mixed + ":4: text is int" in caplog.text


def test_more_bad_records_than_the_limit_are_refused(
    mixed: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = RowEncoder(byte_tokenizer)
    with pytest.raises(DataError, match=r"mixed\.jsonl:2: not JSON"):
        read_rows(mixed, "auto", encoder, None, BadRecords(0))
    with pytest.raises(DataError, match=r"mixed\.jsonl:4: .*; data.max_bad_records=1 skips no"):
        read_rows(mixed, "auto", encoder, None, BadRecords(1))


def test_the_limit_counts_good_records_and_reads_no_further(
    mixed: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    bad = BadRecords(1)
    assert len(read_rows(mixed, "auto", RowEncoder(byte_tokenizer), 2, bad)) == 2
    assert len(bad.reasons) == 1


def test_a_source_without_a_good_record_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl: holds no record that can be used"):
        read_rows(str(file), "auto", RowEncoder(byte_tokenizer), None, BadRecords(9))
