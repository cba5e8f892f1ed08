"""LlamaHome: one eviction policy from fine-tuning to serving."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamahome.attention import HybridAttention
    from llamahome.engine import TextEngine
    from llamahome.models import ModelManager

__all__ = ["HybridAttention", "ModelManager", "TextEngine"]

_HOMES = {
    "HybridAttention": "llamahome.attention",
    "ModelManager": "llamahome.models",
    "TextEngine": "llamahome.engine",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for, so `--help` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
