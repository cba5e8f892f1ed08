"""Plain text from files, as rows of tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llamahome.data.encode import Row
from llamahome.data.errors import DataError
from llamahome.data.files import SourceFile
from llamahome.data.sources import read_utf8


def read_text(path: Path) -> str:
    """Return the text of a file, `.gz` or plain, in UTF-8.

    Raises:
        DataError: for a file that cannot be read, is no text, or is empty.
    """
    return text_of(SourceFile(str(path)))


def text_of(file: SourceFile) -> str:
    """Return the text of a source's file, as `read_text` does."""
    text = read_utf8(file)
    if not text.strip():
        raise DataError(f"{file.name}: holds no text; give a file with some")
    return text.replace("\r\n", "\n")


def text_rows(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Row]:
    """Return consecutive rows of `length` tokens, all of which are labels.

    Tokens left over at the end are dropped, unless the whole text is shorter than one row.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    whole = max(1, len(ids) // length)
    pieces = [ids[start : start + length] for start in range(0, whole * length, length)]
    return [
        {"input_ids": piece, "attention_mask": [1] * len(piece), "labels": list(piece)}
        for piece in pieces
    ]
