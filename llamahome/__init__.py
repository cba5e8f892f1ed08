"""LlamaHome: one eviction policy from fine-tuning to serving."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamahome.attention import HybridAttention
    from llamahome.engine import TextEngine
    from llamahome.models import ModelManager

__all__ = ["HybridAttention", "ModelManager", "TextEngine"]  # and the names of _ABOVE

_HOMES = {
    "HybridAttention": "llamahome.attention",
    "ModelManager": "llamahome.models",
    "TextEngine": "llamahome.engine",
}
# The application around this library, found only where the whole repository is installed.
_ABOVE = {
    "CacheManager": "serve.process",
    "process_input": "serve.process",
    "train_model": "train.api",
}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for, so `--help` answers at once."""
    if name not in _HOMES | _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module((_HOMES | _ABOVE)[name])
    except ModuleNotFoundError as error:
        if error.name not in ("serve", "train"):
            raise
        message = f"llamahome.{name} needs the repository: put its folder on PYTHONPATH"
        raise ImportError(message, name=error.name) from error
    return getattr(home, name)
