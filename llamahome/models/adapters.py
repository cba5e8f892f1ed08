"""PEFT adapters: folders without a whole model, merged into their base or attached to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from llamahome.models.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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


def attach_adapters(base: PreTrainedModel, folders: Mapping[str, Path]) -> PeftModel:
    """Add adapters to `base`, each to be chosen by its name, and return the PEFT model.

    Raises:
        ModelError: for a folder without an adapter of this model, or an adapter that a request
            cannot choose: requests share all weights except norms and the low-rank parts of the
            layers' linear maps.
    """
    model: PeftModel | None = None
    for name, folder in folders.items():
        if not is_adapter(folder):
            raise ModelError(f"{folder} holds no LoRA adapter ({ADAPTER_CONFIG} is missing)")
        _check_name(name)
        _check_weights(folder)
        _check_kind(folder)
        try:
            if model is None:
                model = PeftModel.from_pretrained(base, str(folder), adapter_name=name)
            else:
                model.load_adapter(str(folder), adapter_name=name)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the adapter {name!r} in {folder} does not fit: {error}") from error
        _check_targets(name, base)
    if model is None:
        raise ModelError("there is no adapter to attach")
    return model.eval()


def merge_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the adapter in `folder` to `base`'s weights, in place, and return the plain model."""
    _check_weights(folder)
    adapted = PeftModel.from_pretrained(base, str(folder))
    merged = cast(PreTrainedModel, adapted.merge_and_unload())
    # PEFT froze the base; the merged model must be trainable like any other.
    return merged.requires_grad_(True)


def _check_name(name: str) -> None:
    """Refuse a name that PEFT cannot give to a module."""
    if not name or "." in name or name == "__base__":
        raise ModelError(f"engine.adapters names one {name!r}; use letters, digits, - and _")


def _check_kind(folder: Path) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    for field, plain in (
        ("peft_type", "LORA"),
        ("use_dora", False),
        ("lora_bias", False),
        ("bias", "none"),
    ):
        value = config.get(field, plain)
        if value != plain:
            raise ModelError(
                f"{folder / ADAPTER_CONFIG}: {field}={value!r}, where requests can choose only "
                f"{plain!r}; merge the adapter instead: name its folder as the model"
            )


def _check_targets(name: str, base: PreTrainedModel) -> None:
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    for path, module in base.named_modules():
        whole = isinstance(module, ModulesToSaveWrapper) and not path.endswith("norm")
        if whole or (isinstance(module, LoraLayer | ModulesToSaveWrapper) and module in ends):
            raise ModelError(
                f"the adapter {name!r} changes {path}, which requests share; merge it instead: "
                "name its folder as the model"
            )


def _check_weights(folder: Path) -> None:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{folder} has no {ADAPTER_WEIGHTS}; pickled adapters are never loaded. "
            "Save it again with safe_serialization"
        )


def _base_name(folder: Path) -> str:
    name = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} has no base_model_name_or_path; put the name or folder of "
            "the model there that the adapter was trained on"
        )
    return name
