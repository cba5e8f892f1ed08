"""Snapshots on disk: one safetensors file each, bounded in bytes, least recently used out first."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llamahome.cache.slots import SlotState
from llamahome.config.checks import require

logger = logging.getLogger(__name__)

FORMAT = "llamahome-snapshot-1"
_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.\d+\.tmp")
_UNFINISHED_AGE_S = 3600.0


class SnapshotCorruptError(Exception):
    """A snapshot file whose content is not what was written."""


class SnapshotFolder:
    """A folder of snapshots, by digest of 32 bytes.

    Other files in the folder are left alone. Processes may share a folder: each finds the others'
    files when it next writes, and the limit holds for all of them together. The time of
    modification orders the files by use, so the order survives a restart.

    A corrupt file is a miss; it is logged and removed. A disk that cannot be written to is logged
    once and costs the snapshot, never the request.

    Args:
        path: made if it is missing, for its owner alone, since snapshots hold what users said.
        max_bytes: limit for all files together.

    Raises:
        ConfigError: for a folder that other users may read.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777
        require(
            mode & 0o077 == 0,
            "engine.snapshot_dir",
            str(path),
            f"snapshots hold what users said, and its mode {mode:o} lets others in; "
            "name a folder of mode 700, or one that does not exist yet",
        )
        self.path = path
        self.max_bytes = max_bytes
        self._write_failed = False
        self._sizes: dict[bytes, int] = {}
        self._remove_unfinished()
        self._scan()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._sizes

    @property
    def nbytes(self) -> int:
        """Bytes of the files, as of the last write."""
        return sum(self._sizes.values())

    def get(self, digest: bytes) -> SlotState | None:
        """Return the state of a digest, if its file is there and intact."""
        if digest not in self._sizes:
            return None
        file = self._file(digest)
        try:
            state = _read(file, digest)
            os.utime(file, ns=(time.time_ns(),) * 2)
        except FileNotFoundError:  # another process evicted it
            del self._sizes[digest]
            return None
        except (SnapshotCorruptError, SafetensorError, OSError) as error:
            logger.warning("snapshot %s is corrupt and was removed: %s", file, error)
            self._remove(digest)
            return None
        return state

    def put(self, digest: bytes, state: SlotState) -> None:
        """Write a state unless it is there, mark it as just used, and make room for it."""
        if state.nbytes > self.max_bytes:
            return
        file = self._file(digest)
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            if not file.exists():
                _write(unfinished, digest, state)
                os.replace(unfinished, file)
            os.utime(file, ns=(time.time_ns(),) * 2)
            self._scan()
        except (SafetensorError, OSError) as error:
            if not self._write_failed:
                logger.warning(
                    "snapshots cannot be written to %s and are lost: %s", self.path, error
                )
            self._write_failed = True
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            return
        self._make_room()

    def _make_room(self) -> None:
        nbytes = self.nbytes
        for digest, size in list(self._sizes.items()):
            if nbytes <= self.max_bytes:
                return
            nbytes -= size
            self._remove(digest)

    def _remove(self, digest: bytes) -> None:
        self._sizes.pop(digest, None)
        with contextlib.suppress(OSError):  # the next scan finds it again
            self._file(digest).unlink(missing_ok=True)

    def _file(self, digest: bytes) -> Path:
        return self.path / f"{digest.hex()}.safetensors"

    def _scan(self) -> None:
        """List the files that are there, least recently used first."""
        found = []
        for name, status in self._list():
            if match := _FILE.fullmatch(name):
                found.append((status.st_mtime_ns, bytes.fromhex(match[1]), status.st_size))
        self._sizes = {digest: size for _, digest, size in sorted(found)}

    def _remove_unfinished(self) -> None:
        """Remove files that a process left unfinished when it died."""
        for name, status in self._list():
            old = time.time() - status.st_mtime > _UNFINISHED_AGE_S
            if old and _UNFINISHED.fullmatch(name):
                (self.path / name).unlink(missing_ok=True)

    def _list(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False)


def _write(file: Path, digest: bytes, state: SlotState) -> None:
    """Write a file, without fsync: the checksum finds what a crash of the machine tears."""
    metadata = {
        "format": FORMAT,
        "length": str(state.length),
        "sink": str(state.sink),
        "blake2b": _checksum(digest, state),
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, file, metadata=metadata)


def _read(file: Path, digest: bytes) -> SlotState:
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise SnapshotCorruptError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        # Cloned, since the tensors would still read from the file.
        tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    try:
        state = SlotState(int(metadata["length"]), int(metadata["sink"]), tensors)
    except (KeyError, ValueError) as error:
        raise SnapshotCorruptError(f"its metadata is incomplete ({error})") from error
    if metadata.get("blake2b") != _checksum(digest, state):
        raise SnapshotCorruptError("its checksum does not match its content")
    return state


def _checksum(digest: bytes, state: SlotState) -> str:
    """Return the checksum of a state and of the digest that it belongs to."""
    hashed = blake2b(digest, digest_size=32)
    hashed.update(f"{FORMAT} {state.length} {state.sink}".encode())
    for name, tensor in sorted(state.tensors.items()):
        hashed.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
