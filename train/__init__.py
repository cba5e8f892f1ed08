"""Fine-tuning under a policy, on Ray: `train_model` from Python, `python -m train` from a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.api import train_model as train_model
    from train.callbacks import ActiveRun as ActiveRun
    from train.callbacks import Callback as Callback

__all__ = ["ActiveRun", "Callback", "train_model"]


def __getattr__(name: str) -> Any:
    """Import torch and Ray only when something that needs them is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train import api, callbacks

    return getattr(api if name == "train_model" else callbacks, name)
