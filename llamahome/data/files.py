"""Files of records on this machine or at a URL, their order, and digests of their content."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from llamahome.data.errors import DataError

TEXT_SUFFIXES = (".txt",)
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
# Entries of fsspec's description of a file by which a change shows.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, by its path or URL."""

    name: str

    @property
    def suffix(self) -> str:
        return suffix_of(self.name)

    @contextmanager
    def open(self, wrap: Callable[[BinaryIO], BinaryIO] | None = None) -> Iterator[BinaryIO]:
        """Open the file as bytes, without its compression.

        Args:
            wrap: takes the bytes as they are stored and gives them on; None leaves it out.

        Raises:
            DataError: here or while it is read, for a file that cannot be read.
        """
        with reading(self.name), self._opened() as stored:
            raw = wrap(stored) if wrap else stored
            if self.name.endswith(".gz"):
                with gzip.open(raw) as plain:
                    yield cast(BinaryIO, plain)
            else:
                yield raw

    def size(self) -> int:
        """Return the bytes of the file as it is stored, 0 where nobody says."""
        with reading(self.name):
            if is_url(self.name):
                return int(_description(self.name).get("size") or 0)
            return Path(self.name).stat().st_size

    def digest(self) -> str:
        """Return a digest of the content; of a file at a URL, of what its server says of it."""
        with reading(self.name):
            if is_url(self.name):
                said = _description(self.name)
                if any(said.get(key) for key in _VERSIONS):
                    text = json.dumps(said, sort_keys=True, default=str)
                    return hashlib.sha256(f"{self.name} {text}".encode()).hexdigest()
            with self._opened() as raw:
                return hashlib.file_digest(raw, "sha256").hexdigest()

    def _opened(self) -> Any:
        return fsspec.open(self.name, "rb") if is_url(self.name) else Path(self.name).open("rb")


def is_url(source: str) -> bool:
    """Tell whether a source is a URL that fsspec opens, such as s3://bucket/chats.jsonl."""
    return "://" in source


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of files, URLs and compression into one line that names the file."""
    try:
        yield
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: is no UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{name}: {_reason(error)}; give a file that can be read") from error
    except (ImportError, ValueError) as error:
        if isinstance(error, DataError) or not is_url(name):
            raise
        raise DataError(f"{name}: cannot be opened ({_reason(error)})") from error


def suffix_of(name: str) -> str:
    """Return what a file's name ends with, without .gz and in lower case."""
    return PurePosixPath(name.removesuffix(".gz")).suffix.lower()


def exists(path: Path) -> bool:
    """Tell whether a path is a file, a folder, or a pattern that matches one."""
    return path.exists() or any(glob.iglob(str(path), recursive=True))


def files_of(source: str) -> list[SourceFile]:
    """Return the files of a file, folder, pattern or URL of one, in the order of their names.

    Raises:
        DataError: when there is none.
    """
    with reading(source):
        names = _remote(source) if is_url(source) else _local(source)
    if not names:
        raise DataError(
            f"{source}: holds no file of records; give files ending in "
            f"{', '.join((*RECORD_SUFFIXES, *TEXT_SUFFIXES))} (.gz too)"
        )
    return [SourceFile(name) for name in names]


def _local(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        visible = (f for f in sorted(path.rglob("[!.]*")) if "/." not in f"/{f.relative_to(path)}")
        return [str(file) for file in visible if file.is_file() and _is_known(str(file))]
    if path.exists():
        return [source]
    return [name for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]


def _remote(source: str) -> list[str]:
    """Return the URLs that a URL of a file, folder or pattern stands for."""
    if "::" in source:
        raise DataError(f"{source}: is a chain of URLs; give one that is no chain")
    system, path = url_to_fs(source)
    if glob.has_magic(path):
        found = [name for name in system.glob(path) if system.isfile(name)]
    elif _is_known(path):  # asking a web server for a folder would fetch the file
        found = [path] if system.exists(path) else []
    elif system.isdir(path):
        found = [name for name in system.find(path) if _is_known(name)]
    else:
        found = [path] if system.exists(path) else []
    return sorted(system.unstrip_protocol(name) for name in found)


def _is_known(name: str) -> bool:
    return suffix_of(name) in (*TEXT_SUFFIXES, *RECORD_SUFFIXES)


def _description(url: str) -> dict[str, Any]:
    system, path = url_to_fs(url)
    return dict(system.info(path))


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]
