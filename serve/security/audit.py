"""The audit log: one line of JSON for each request, without prompts and answers.

Several processes append to one file. A line is one write to a file opened with O_APPEND, so lines
never mix. A full file is renamed under a lock, and the others notice that their file has moved.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
KEPT = 10  # older files: audit.log.1 is the newest


class AuditLog:
    """Appends to a file of mode 0600, which is rotated by size.

    Raises:
        OSError: when the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = self._open()

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record; a disk that is full is logged, and the request goes on."""
        line = json.dumps(record, separators=(",", ":")) + "\n"
        try:
            self._follow()
            os.write(self._file, line.encode())
        except OSError as error:
            logger.error("the audit log %s cannot be written: %s", self._path, error)

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow(self) -> None:
        """Rotate a full file, and open the new one if any process has rotated it."""
        if os.fstat(self._file).st_size >= self._max_bytes:
            with FileLock(f"{self._path}.lock", mode=0o600):
                if self._current():
                    self._rotate()
        if not self._current():
            old, self._file = self._file, self._open()
            os.close(old)

    def _current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in reversed(range(1, self._kept)):
            with suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
