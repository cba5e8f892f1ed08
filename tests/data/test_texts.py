"""Plain text as rows of tokens."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.data import DataError, read_text, text_rows


def test_text_is_read_plain_and_compressed(tmp_path: Path) -> None:
    text = "Emma Woodhouse, handsome, clever, and rich \u2014"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "is no UTF-8 text"),
        ("a.gz", b"plain", "is no UTF-8 text"),
        ("a.gz", gzip.compress(b"cut short", mtime=0)[:-9], "is no UTF-8 text"),
        ("a.gz", gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 20, "is no UTF-8 text"),
        ("a.txt", b" \n", "holds no text"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory; give a file that can be read"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read_text(tmp_path / "none.txt")


def test_every_token_of_a_row_is_a_label(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = text_rows("abcdefgh", byte_tokenizer, 3)
    assert ["".join(byte_tokenizer.decode(row["input_ids"])) for row in rows] == ["abc", "def"]
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert all(row["attention_mask"] == [1, 1, 1] for row in rows)


def test_a_text_shorter_than_a_row_is_one_row(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    [row] = text_rows("ab", byte_tokenizer, 3)
    assert len(row["labels"]) == 2
