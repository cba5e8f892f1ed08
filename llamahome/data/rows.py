"""Rows of a source, tokenised once, and the records of it that cannot be used."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from llamahome.data.encoding import Chunk, ChunkEncoder, encode_records
from llamahome.data.errors import DataError
from llamahome.data.files import SourceFile
from llamahome.data.sources import (
    Opener,
    dataset_identity,
    is_dataset,
    plain_texts,
    raw_records,
    source_files,
)
from llamahome.data.table import TableWriter, TokenTable
from llamahome.data.texts import text_of, text_rows
from llamahome.data.token_cache import TokenCache

logger = logging.getLogger(__name__)

READ_BYTES = 2**20  # between two looks at the progress bar
# Packages whose next release may write other tokens.
PACKAGES = ("transformers", "tokenizers", "jinja2")


class BadRecords:
    """The records that cannot be used, each a line of file, place and reason.

    Args:
        limit: one more raises.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reasons: list[str] = []

    def skip(self, reason: str) -> None:
        """Count and list a record.

        Raises:
            DataError: when there are more than the limit.
        """
        self.reasons.append(reason)
        if len(self.reasons) > self._limit:
            skipped = f"; data.max_bad_records={self._limit} skips no more" if self._limit else ""
            raise DataError(f"{reason}{skipped}")
        logger.warning("skipped %d/%d: %s", len(self.reasons), self._limit, reason)


@dataclass(frozen=True)
class RowOptions:
    """Options that change a source's rows.

    Attributes:
        length: tokens of a row of plain text.
        limit: records or rows that are taken; None takes all.
    """

    format: str
    train_on: str
    length: int
    limit: int | None = None


def read_rows(
    source: str,
    options: RowOptions,
    tokenizer: PreTrainedTokenizerBase,
    bad: BadRecords,
    cache: TokenCache,
) -> TokenTable:
    """Return the rows of a source's first `limit` records that can be used, from disk.

    What changes the rows makes the key: the content, the tokenizer with its chat template, the
    options, and this code.

    Raises:
        DataError: for a source that cannot be read, more bad records than may be skipped, or
            none that is good.
    """
    made = False

    def make(writer: TableWriter) -> list[str]:
        nonlocal made
        made = True
        before = len(bad.reasons)
        _tokenise(source, options, tokenizer, bad, writer)
        return [_without_name(reason, names) for reason in bad.reasons[before:]]

    names = [source] if is_dataset(source) else [file.name for file in source_files(source)]
    key = _digest(_content(source), _tokenizer_identity(tokenizer), asdict(options), _code())
    table = cache.table(key, source, make)
    if not made:
        for reason in table.bad:
            number, _, rest = reason.partition(":")
            bad.skip(names[int(number)] + rest)
    return table


def _without_name(reason: str, names: list[str]) -> str:
    """Return a reason with its file's number: the same content may have other names tomorrow."""
    number = max((len(name), i) for i, name in enumerate(names) if reason.startswith(name))[1]
    return f"{number}:{reason.removeprefix(names[number])}"


def _tokenise(
    source: str,
    options: RowOptions,
    tokenizer: PreTrainedTokenizerBase,
    bad: BadRecords,
    writer: TableWriter,
) -> None:
    if texts := plain_texts(source, options.format):
        for text in texts:
            rows = text_rows(text_of(text), tokenizer, options.length)
            left = None if options.limit is None else options.limit - writer.rows
            writer.append(TokenTable.of(rows[:left]))
        return
    encoder = ChunkEncoder(tokenizer, options.format, options.train_on)
    with _progress(source) as opener:
        for chunk in encode_records(raw_records(source, opener), encoder):
            _append(chunk, writer, options.limit, bad)
            if writer.rows == options.limit:
                break
    if not writer.rows:
        raise DataError(f"{source}: holds no record that can be used; correct its records")


def _append(chunk: Chunk, writer: TableWriter, limit: int | None, bad: BadRecords) -> None:
    """Append rows up to the limit; records behind it are not looked at."""
    good = 0
    for reason in chunk.outcomes:
        if limit is not None and writer.rows + good == limit:
            break
        if reason is None:
            good += 1
        else:
            bad.skip(reason)
    else:
        if chunk.failure is not None:
            raise DataError(chunk.failure)
    writer.append(chunk.table.first(good))


@contextmanager
def _progress(source: str) -> Iterator[Opener]:
    """Show in a terminal how much of the files is read; yield what opens them."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield SourceFile.open
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as shown:
        files = [] if is_dataset(source) else source_files(source)
        total = sum(file.size() for file in files)
        task = shown.add_task(f"tokenising {source}", total=total or None)

        def counted(raw: BinaryIO) -> BinaryIO:
            reader = shown.wrap_file(raw, total=total, task_id=task)
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader), READ_BYTES))

        yield lambda file: file.open(counted)


def _content(source: str) -> list[str]:
    """Return what changes with a source's content, in the order of its files."""
    if is_dataset(source):
        return dataset_identity(source)
    return [part for file in source_files(source) for part in (file.suffix, file.digest())]


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return everything of a tokenizer that changes a row."""
    template = tokenizer.chat_template
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    return [
        type(tokenizer).__name__,
        backend,
        template,
        tokenizer.special_tokens_map,
        tokenizer.encode(""),
        # A template that writes the date makes other rows tomorrow.
        date.today().isoformat() if "strftime_now" in json.dumps(template) else "",
    ]


@cache
def _code() -> list[str]:
    folder = Path(__file__).parent
    sources = [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.py"))
    ]
    return [*sources, *map(version, PACKAGES)]


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
