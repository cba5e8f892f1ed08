"""Folders that are there completely or not at all, also under several processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

PARTIAL = ".partial"
LOCK = ".lock"


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `target` unless it exists.

    `build` makes and fills a folder beside it, which takes `target`'s name only when `build` has
    returned. One process builds, others wait for it. What an earlier, killed process left in that
    folder is still there.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if target.is_dir():
            return
        partial = _beside(target, PARTIAL)
        build(partial)
        os.replace(partial, target)


def remove_folder(target: Path) -> bool:
    """Remove `target` and what was begun of it; whether there was anything.

    A removal that is interrupted leaves no folder of that name.
    """
    partial = _beside(target, PARTIAL)
    if not target.is_dir() and not partial.is_dir():
        return False
    with _lock(target):
        if partial.is_dir():
            shutil.rmtree(partial)
        if target.is_dir():
            os.replace(target, partial)
            shutil.rmtree(partial)
    return True


def finished_folders(parent: Path) -> list[Path]:
    """Folders in `parent`, sorted, without those that are being made."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and path.suffix != PARTIAL)


def is_folder_name(name: str) -> bool:
    """Whether `name` can only ever mean a folder directly inside another."""
    return bool(name) and name[0] != "." and not set(name) & set("/\\\0")


def _lock(target: Path) -> FileLock:
    return FileLock(_beside(target, LOCK))


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)
