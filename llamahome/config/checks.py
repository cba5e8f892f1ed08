"""Range checks that name the key, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config value that cannot be used; the message names key, value and cure."""


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` for `key` unless `ok`."""
    if not ok:
        raise ConfigError(f"{key}={value!r} is not allowed: {allowed}")


def at_least(key: str, value: float, low: float) -> None:
    require(math.isfinite(value), key, value, "it must be a finite number")
    require(value >= low, key, value, f"it must be at least {low}")


def above(key: str, value: float, low: float) -> None:
    require(math.isfinite(value), key, value, "it must be a finite number")
    require(value > low, key, value, f"it must be above {low}")


def fraction(key: str, value: float) -> None:
    require(0 <= value < 1, key, value, "it must lie in [0, 1)")


def one_of(key: str, value: object, choices: Iterable[object]) -> None:
    names = list(choices)
    require(value in names, key, value, "choose one of " + ", ".join(map(str, names)))
