"""Folders that a program will write to, tried before it works for minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llamahome.config.checks import ConfigError


def check_writable(folder: Path, key: str) -> None:
    """Try to write where `folder` is or will be made, and leave nothing there.

    Args:
        key: names the folder in the config or the environment.

    Raises:
        ConfigError: for a file in its place or above it, and for a folder that takes no files.
    """
    try:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ConfigError(
            f"{key}={str(folder)!r} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
