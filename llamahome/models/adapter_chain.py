"""The folders below an adapter: its base, and the bases of that one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llamahome.models.errors import ModelError
from llamahome.models.json_files import read_json

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_chain(folder: Path, resolve: Callable[[str], Path]) -> list[Path]:
    """Return `folder`, its adapter's base, that one's base, and so on down to a whole model.

    Args:
        resolve: finds the folder for an adapter's `base_model_name_or_path`.

    Raises:
        ModelError: for adapters that are each other's base, or one that names no base.
    """
    chain = [folder]
    while is_adapter(chain[-1]):
        base = resolve(_base_name(chain[-1]))
        if base in chain:
            raise ModelError(f"the adapter {chain[-1]} sits on {base}, which sits on it")
        chain.append(base)
    return chain


def _base_name(folder: Path) -> str:
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} has no base_model_name_or_path; put the name or folder of "
            "the model there that the adapter was trained on"
        )
    return name
