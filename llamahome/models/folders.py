"""Folders that exist completely or not at all, even when several processes make them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

PARTIAL = ".partial"
LOCK = ".lock"


def build_once(
    target: Path,
    build: Callable[[Path], None],
    *,
    stale: Callable[[Path], bool] = lambda folder: False,
) -> None:
    """Make the folder `target` unless it exists and is not `stale`.

    `build` makes and fills a folder next to it, which is renamed to `target` once `build` has
    returned. One process builds; others wait for it. `build` finds what an earlier, killed process
    left in that folder.
    """
    if target.is_dir() and not stale(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if target.is_dir() and not stale(target):
            return
        partial = _sibling(target, PARTIAL)
        if target.is_dir():
            _remove(target, partial)
        build(partial)
        os.replace(partial, target)


def remove_folder(target: Path) -> bool:
    """Remove `target`, finished or partial, and return whether there was anything.

    An interrupted removal leaves no folder of that name.
    """
    partial = _sibling(target, PARTIAL)
    if not target.is_dir() and not partial.is_dir():
        return False
    with _lock(target):
        _remove(target, partial)
    return True


def _remove(target: Path, partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    if target.is_dir():
        os.replace(target, partial)
        shutil.rmtree(partial)


def finished_folders(parent: Path) -> list[Path]:
    """List the folders in `parent`, sorted, without partial ones."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and path.suffix != PARTIAL)


def is_folder_name(name: str) -> bool:
    """Return whether `name` can only mean a direct child of a folder."""
    return bool(name) and name[0] != "." and not set(name) & set("/\\\0")


def _lock(target: Path) -> FileLock:
    return FileLock(_sibling(target, LOCK))


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)
