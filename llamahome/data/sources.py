"""Raw records from files, folders, patterns, URLs and Hugging Face data sets."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from llamahome.data.errors import DataError
from llamahome.data.files import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    SourceFile,
    exists,
    files_of,
    is_url,
    suffix_of,
)
from llamahome.data.json_records import json_records

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PARQUET_ROWS = 1024  # at a time, of those that a file may hold in one group
_SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes

# A raw record and its place, for messages; BadRecord for a place that holds none.
Raw = tuple[str, Any]
Opener = Callable[[SourceFile], AbstractContextManager[BinaryIO]]


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a data set of the Hugging Face hub, owner/name."""
    return _HUB_ID.fullmatch(name) is not None and suffix_of(name) not in (
        *TEXT_SUFFIXES,
        *RECORD_SUFFIXES,
    )


def split_of(source: str) -> tuple[str, str | None]:
    """Return a data set's name and the split that it names after a colon."""
    name, colon, split = source.rpartition(":")
    return (name, split) if colon and not Path(source).exists() else (source, None)


def plain_texts(source: str, format: str) -> list[SourceFile]:
    """Return the files of a source that holds plain texts and no records, otherwise none."""
    if format not in ("auto", "text") or is_dataset(source):
        return []
    files = source_files(source)
    if format == "text":
        return files if all(file.suffix not in RECORD_SUFFIXES for file in files) else []
    return files if all(file.suffix in TEXT_SUFFIXES for file in files) else []


def raw_records(source: str, opener: Opener = SourceFile.open) -> Iterator[Raw]:
    """Yield each record of a source, after its place: file and line, or file and row.

    Memory holds a record, of Parquet a group of rows; a JSON list and a plain text are read whole.

    Args:
        source: a file (JSON lines, JSON, Parquet, plain text; .gz too), a folder of such, a
            pattern like data/*.jsonl, a URL of one of these, a folder of `datasets.save_to_disk`,
            or a hub id; the last two with `:split` after them.
        opener: opens a file; one that counts bytes shows progress.

    Raises:
        DataError: for what cannot be read.
    """
    if is_dataset(source):
        yield from _dataset(source)
        return
    count = 0
    for file in source_files(source):
        for raw in _of_file(file, opener):
            count += 1
            yield raw
    if not count:
        raise DataError(f"{source}: holds no record; give a file with one JSON object per line")


def read_utf8(file: SourceFile) -> str:
    """Return the text of a file, `.gz` or plain, in UTF-8, without a byte-order mark.

    Raises:
        DataError: for a file that cannot be read or is no text.
    """
    with file.open() as stream:
        return stream.read().decode("utf-8-sig")


def is_dataset(source: str) -> bool:
    """Tell whether a source is a data set of `datasets`, saved in a folder or on the hub."""
    if is_url(source):
        return False
    folder = Path(split_of(source)[0])
    saved = any((folder / name).is_file() for name in _SAVED)
    return saved or (not exists(Path(source)) and is_hub_id(split_of(source)[0]))


def source_files(source: str) -> list[SourceFile]:
    """Return a source's files in the order of their names.

    Raises:
        DataError: when there is none, or a split of what is no data set.
    """
    name, split = split_of(source)
    if split is not None and not is_url(source) and Path(name).exists():
        raise DataError(f"{source}: only data sets have splits; leave the colon out")
    return files_of(source)


def dataset_identity(source: str) -> list[str]:
    """Return what changes with a data set's rows: its files, or the fingerprint that it has."""
    name, split = split_of(source)
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return [str(split), *(SourceFile(str(path)).digest() for path in files)]
    return [name, str(split), str(_split(source)._fingerprint)]


def _of_file(file: SourceFile, opener: Opener) -> Iterator[Raw]:
    if file.suffix == ".parquet":
        yield from _parquet(file, opener)
    elif file.suffix in TEXT_SUFFIXES:
        yield file.name, {"text": read_utf8(file)}
    else:
        with opener(file) as lines:
            yield from json_records(lines, file.name)


def _parquet(file: SourceFile, opener: Opener) -> Iterator[Raw]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{file.name}: pyarrow is missing; run `make install`") from error
    try:
        number = 0
        with opener(file) as stream:
            for batch in parquet.ParquetFile(stream).iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file.name}: row {number}", _without_nulls(row)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file.name}: cannot be read as Parquet ({reason}); write it again"
        ) from error


def _dataset(source: str) -> Iterator[Raw]:
    for number, row in enumerate(_split(source)):
        yield f"{source}: row {number}", _without_nulls(row)


def _split(source: str) -> Any:
    """Load the data set of a source, or the split that it names."""
    name, split = split_of(source)
    loaded = _loaded(name, source)
    if hasattr(loaded, "keys"):  # a data set for each split
        split = split or "train"
        if split not in loaded:
            raise DataError(
                f"{source}: has no split {split!r}; name one of {', '.join(loaded)} after a colon"
            )
        return loaded[split]
    if split is not None:
        raise DataError(f"{source}: it was saved without splits; leave :{split} out")
    return loaded


def _loaded(name: str, source: str) -> Any:
    try:
        # By name: mypy would take the repository's folder of this name for the package.
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise DataError(f"{source}: the package datasets is missing; run `make install`") from error
    try:
        if Path(name).is_dir():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(name)
    except Exception as error:  # the hub's client and each file format raise their own
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{source}: cannot be loaded as a Hugging Face data set ({reason}); check the name and "
            "the network, or give a file"
        ) from error


def _without_nulls(value: Any) -> Any:
    """Return a row without nulls: Arrow fills keys with them that other rows have."""
    match value:
        case dict():
            return {key: _without_nulls(part) for key, part in value.items() if part is not None}
        case list():
            return [_without_nulls(part) for part in value]
    return value
