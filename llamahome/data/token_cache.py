"""Tokenised sources on disk, by what they are made from; least recently used out first."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llamahome.config.cache_folder import cache_folder
from llamahome.data.errors import DataError
from llamahome.data.table import (
    CorruptTableError,
    TableWriter,
    TokenTable,
    open_table,
    read_entry,
)

logger = logging.getLogger(__name__)

UNFINISHED, REMOVED, LOCK = ".unfinished", ".removed", ".lock"

# Write a table's rows, and return the skipped records.
Make = Callable[[TableWriter], list[str]]


@dataclass(frozen=True)
class CacheEntry:
    """One tokenised source.

    Attributes:
        used: when it was last opened, in seconds since the epoch.
    """

    folder: Path
    source: str
    rows: int
    tokens: int
    nbytes: int
    used: float


class TokenCache:
    """A folder of tables, by key; processes may share it.

    One process makes a table, and those that want the same wait and read. A table appears complete
    or not at all. A corrupt one is logged and made anew.

    Args:
        folder: made if it is missing.
        max_bytes: limit for all tables together, the one just made aside.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, folder: str | None, max_bytes: int) -> TokenCache:
        """Take a folder by its name; None is `tokens` in the cache directory."""
        named = Path(folder).expanduser().resolve() if folder else cache_folder() / "tokens"
        return cls(named, max_bytes)

    def table(self, key: str, source: str, make: Make) -> TokenTable:
        """Return the table of a key; make it first, unless it is there and intact.

        Raises:
            DataError: from `make`, or for a folder that cannot be written to.
        """
        folder = self.folder / key
        with self._writing():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(CorruptTableError, FileNotFoundError):
                return _opened(folder)
            with FileLock(self.folder / (key + LOCK)):
                try:
                    return _opened(folder)
                except (CorruptTableError, FileNotFoundError) as error:
                    if folder.exists():
                        logger.warning("%s: %s; %s is tokenised again", folder, error, source)
                        _remove(folder)
                table = self._make(folder, source, make)
                self._make_room(keep=key)
                return table

    def entries(self) -> list[CacheEntry]:
        """List the tables, the last used first."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if not folder.suffix:
                with contextlib.suppress(OSError):  # another process removed it
                    found.append(_described(folder))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Remove all tables that nobody is making, and return how many there were."""
        entries = self.entries()
        for entry in entries:
            _remove(entry.folder)
        self._remove_unfinished()
        return len(entries)

    def _make(self, folder: Path, source: str, make: Make) -> TokenTable:
        """Make a table and open it before others see it, and may remove it."""
        unfinished = folder.with_suffix(UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)  # its maker died: the lock is ours
        unfinished.mkdir(mode=0o700)
        writer = TableWriter(unfinished)
        try:
            bad = make(writer)
            writer.close(source=source, bad=bad)
            table = open_table(unfinished)
            unfinished.rename(folder)
        except BaseException:
            writer.abort()
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return table

    def _make_room(self, keep: str) -> None:
        nbytes = 0
        for entry in self.entries():
            nbytes += entry.nbytes
            if nbytes > self._max_bytes and entry.folder.name != keep:
                logger.info("%s is removed from the cache of tokens", entry.source)
                _remove(entry.folder)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Remove what processes left that died; those that live hold their lock."""
        for removed in self.folder.glob(f"*{REMOVED}"):
            shutil.rmtree(removed, ignore_errors=True)
        for lock in self.folder.glob(f"*{LOCK}"):
            with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(UNFINISHED), ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cure = "free some space, or name another" if error.errno == errno.ENOSPC else "name one"
            raise DataError(
                f"data.cache_dir={str(self.folder)!r}: {error.strerror or error}; {cure} that can "
                "be written to"
            ) from error


def _opened(folder: Path) -> TokenTable:
    table = open_table(folder)
    os.utime(folder)
    return table


def _described(folder: Path) -> CacheEntry:
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    used = folder.stat().st_mtime
    try:
        said = read_entry(folder)
    except (CorruptTableError, FileNotFoundError):
        return CacheEntry(folder, "(corrupt)", 0, 0, nbytes, used)
    return CacheEntry(folder, said["source"], said["rows"], said["tokens"], nbytes, used)


def _remove(folder: Path) -> None:
    """Remove a table; those who have it open keep their maps."""
    gone = folder.with_suffix(f".{os.getpid()}{REMOVED}")
    with contextlib.suppress(OSError):  # another process was faster
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
