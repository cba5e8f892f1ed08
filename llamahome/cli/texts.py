"""Texts that a user types, pipes in or names."""

from __future__ import annotations

import sys
from pathlib import Path

from llamahome.config import ConfigError

CURE = "give it as UTF-8"


def file_text(option: str, path: Path) -> str:
    """Return the text of the file that an option names.

    Raises:
        ConfigError: for a file that cannot be read or is no UTF-8 text.
    """
    from llamahome.data import DataError, read_text

    try:
        return read_text(path)
    except DataError as error:
        raise ConfigError(f"{option}={error}") from error


def stdin_text() -> str:
    """Return standard input; read as bytes, since its own encoding follows the locale.

    Raises:
        ConfigError: for input that is no UTF-8 text.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"prompt='-': standard input is no UTF-8 text ({error}); {CURE}"
        ) from error


def check_typed(name: str, text: str) -> str:
    """Return a typed text; Python keeps bytes that are no UTF-8 as surrogates, which no model has.

    Raises:
        ConfigError: for a text that is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}={text!r}: it is no UTF-8 text; {CURE}") from error
    return text
