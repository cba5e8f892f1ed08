"""Keys whose value a resumed run must keep: its checkpoints and curves depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")

# The metadata of a fixed field; a fixed section fixes every key in it but those that are free.
FIXED = {"fixed": True}
FREE = {"fixed": False}


def fixed(default: Value) -> Value:
    """Declare a fixed field with this default."""
    return field(default=default, metadata=FIXED)


def free(default: Value) -> Value:
    """Declare a field of a fixed section that a resumed run may change."""
    return field(default=default, metadata=FREE)


def changed_keys(
    config: Any, before: Mapping[str, Any], prefix: str = "", within: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted name, value and former value of each fixed key that differs from `before`.

    A key that `before` does not have is newer than the run, so it has no former value.
    """
    for declared in fields(config):
        if declared.name not in before:
            continue
        key, value = prefix + declared.name, getattr(config, declared.name)
        was = before[declared.name]
        is_fixed = declared.metadata.get("fixed", within)
        if is_dataclass(value):
            yield from changed_keys(value, was, f"{key}.", is_fixed)
        elif is_fixed and value != was:
            yield key, value, was
