"""Raw records from files, folders, patterns and Hugging Face data sets."""

from __future__ import annotations

import glob
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamahome.data.errors import BadRecord, DataError

TEXT_SUFFIXES = (".txt",)
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes

# A raw record and its place, for messages; BadRecord for a place that holds none.
Raw = tuple[str, Any]


def exists(path: Path) -> bool:
    """Tell whether a path is a file, a folder, or a pattern that matches one."""
    return path.exists() or any(glob.iglob(str(path), recursive=True))


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a data set of the Hugging Face hub, owner/name."""
    return _HUB_ID.fullmatch(name) is not None and _suffix(Path(name)) not in (
        *TEXT_SUFFIXES,
        *RECORD_SUFFIXES,
    )


def split_of(source: str) -> tuple[str, str | None]:
    """Return a data set's name and the split that it names after a colon."""
    name, colon, split = source.rpartition(":")
    return (name, split) if colon and not Path(source).exists() else (source, None)


def plain_texts(source: str, format: str) -> list[Path]:
    """Return the files of a source that holds plain texts and no records, otherwise none."""
    if format not in ("auto", "text") or _is_dataset(source):
        return []
    files = _files(source)
    if format == "text":
        return files if all(_suffix(file) not in RECORD_SUFFIXES for file in files) else []
    return files if all(_suffix(file) in TEXT_SUFFIXES for file in files) else []


def raw_records(source: str) -> Iterator[Raw]:
    """Yield each record of a source, after its place: file and line, or file and row.

    Args:
        source: a file (JSON lines, JSON, Parquet, plain text; .gz too), a folder of such, a
            pattern like data/*.jsonl, a folder of `datasets.save_to_disk`, or a hub id; the last
            two with `:split` after them.

    Raises:
        DataError: for what cannot be read.
    """
    if _is_dataset(source):
        yield from _dataset(source)
        return
    count = 0
    for file in _files(source):
        for raw in _of_file(file):
            count += 1
            yield raw
    if not count:
        raise DataError(f"{source}: holds no record; give a file with one JSON object per line")


def read_utf8(path: Path) -> str:
    """Return the text of a file, `.gz` or plain, in UTF-8, without a byte-order mark.

    Raises:
        DataError: for a file that cannot be read or is no text.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file that can be read") from error


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _is_dataset(source: str) -> bool:
    folder = Path(split_of(source)[0])
    saved = any((folder / name).is_file() for name in _SAVED)
    return saved or (not exists(Path(source)) and is_hub_id(split_of(source)[0]))


def _files(source: str) -> list[Path]:
    """Return a source's files in the order of their names."""
    path = Path(source)
    if path.is_dir():
        known = (*TEXT_SUFFIXES, *RECORD_SUFFIXES)
        visible = (f for f in sorted(path.rglob("[!.]*")) if "/." not in f"/{f.relative_to(path)}")
        files = [file for file in visible if file.is_file() and _suffix(file) in known]
    elif path.exists():
        files = [path]
    else:
        matches = map(Path, sorted(glob.glob(source, recursive=True)))
        files = [file for file in matches if file.is_file()]
    name, split = split_of(source)
    if not files and split is not None and Path(name).exists():
        raise DataError(f"{source}: only data sets have splits; leave the colon out")
    if not files:
        raise DataError(
            f"{source}: holds no file of records; give files ending in "
            f"{', '.join((*RECORD_SUFFIXES, *TEXT_SUFFIXES))} (.gz too)"
        )
    return files


def _of_file(file: Path) -> Iterator[Raw]:
    suffix = _suffix(file)
    if suffix == ".parquet":
        yield from _parquet(file)
    elif suffix in TEXT_SUFFIXES:
        yield str(file), {"text": read_utf8(file)}
    else:
        yield from _json(read_utf8(file), file)


def _json(text: str, file: Path) -> Iterator[Raw]:
    """Yield the objects of one JSON list, or of JSON objects that follow each other."""
    if text.lstrip().startswith("["):
        for number, value in enumerate(_json_list(text, file), start=1):
            yield f"{file}: record {number}", value
        return
    decoder = json.JSONDecoder()
    at, line = 0, 1
    while rest := _NEXT.search(text, at):
        line += text.count("\n", at, rest.start())
        at, where = rest.start(), f"{file}:{line}"
        try:
            value, end = decoder.raw_decode(text, at)
            after = text[end : _end_of_line(text, end)].strip()
            if after and not after.startswith("{"):
                raise json.JSONDecodeError("Extra data", text, end)
            yield where, value
        except (ValueError, RecursionError) as error:
            end = _next_object(text, at)
            yield where, BadRecord(f"{where}: not JSON ({_fault(error, line)}); {_JSON_CURE}")
        line += text.count("\n", at, end)
        at = end


# A record begins here; a byte-order mark may stand where files were joined.
_NEXT = re.compile(r"[^\s\ufeff]")
_JSON_CURE = "write one JSON object after the other, or the whole file as one list"


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _next_object(text: str, at: int) -> int:
    """Return the first line after `at` that is not the inside or the end of a broken object."""
    found = re.compile(r"\n(?=[^\s}\]])").search(text, at)
    return found.end() if found else len(text)


def _json_list(text: str, file: Path) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{file}:{line}: not JSON ({_fault(error, line)}); {_JSON_CURE}") from error
    return values


def _fault(error: ValueError | RecursionError, line: int) -> str:
    """Say what is wrong with JSON; nesting and numbers without end have no place."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error).partition(";")[0]
    place = f"column {error.colno}" if error.lineno == line else f"line {error.lineno}"
    return f"{error.msg}, {place}"


def _parquet(file: Path) -> Iterator[Raw]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{file}: pyarrow is missing; run `make install`") from error
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file}: row {number}", _without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file}: cannot be read as Parquet ({reason}); write it again") from error


def _dataset(source: str) -> Iterator[Raw]:
    name, split = split_of(source)
    loaded = _loaded(name, source)
    if hasattr(loaded, "keys"):  # a data set for each split
        split = split or "train"
        if split not in loaded:
            raise DataError(
                f"{source}: has no split {split!r}; name one of {', '.join(loaded)} after a colon"
            )
        loaded = loaded[split]
    elif split is not None:
        raise DataError(f"{source}: it was saved without splits; leave :{split} out")
    for number, row in enumerate(loaded):
        yield f"{source}: row {number}", _without_nulls(row)


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
