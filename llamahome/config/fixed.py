"""Keys whose value a resumed run must keep: its checkpoints and curves depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")

# The metadata of a fixed field; a fixed section fixes every key in it.
FIXED = {"fixed": True}


def fixed(default: Value) -> Value:
    """Declare a fixed field with this default."""
    return field(default=default, metadata=FIXED)


def fixed_keys(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every fixed key of a dataclass and its sections."""
    yield from _keys(config, "", within=False)


def _keys(config: Any, prefix: str, *, within: bool) -> Iterator[tuple[str, Any]]:
    for declared in fields(config):
        key, value = prefix + declared.name, getattr(config, declared.name)
        is_fixed = within or "fixed" in declared.metadata
        if is_dataclass(value):
            yield from _keys(value, f"{key}.", within=is_fixed)
        elif is_fixed:
            yield key, value


def value_at(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return the value of a dotted key in nested mappings, or `default` where it is not there."""
    value: Any = config
    for name in key.split("."):
        if name not in value:
            return default
        value = value[name]
    return value
