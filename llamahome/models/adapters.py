"""PEFT adapters: folders without a whole model, merged into their base or attached to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from llamahome.models.adapter_chain import ADAPTER_CONFIG, is_adapter
from llamahome.models.errors import ModelCorruptError, ModelError, one_line
from llamahome.models.four_bits import is_on_four_bits, round_base
from llamahome.models.json_files import read_json
from llamahome.models.weight_files import opened

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Fields in which adapters of one model may differ; targets are checked once they are loaded.
CHOSEN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Initial weights that leave the base as it is; PiSSA and OLoRA subtract theirs from it.
SEPARATE = (True, False, "gaussian", "eva", "orthogonal")
# PEFT has no class of its own for what it cannot load.
FAILURES = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


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
        _check_kind(folder)
        model = _load(base if model is None else model, folder, name)
        _check_targets(name, base)
        _check_names(model, folder, name)
    if model is None:
        raise ModelError("there is no adapter to attach")
    return model.eval()


def merge_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the adapter in `folder` to `base`'s weights, in place, and return the plain model.

    Raises:
        ModelError: for an adapter that does not fit, or has no weights to add.
    """
    if read_json(folder / ADAPTER_CONFIG).get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: alora_invocation_tokens start the adapter amid a text, "
            "which no merged weight can; use an adapter without them"
        )
    try:
        adapted = load_adapter(base, folder)
        _untie(base)
        merged = cast(PreTrainedModel, adapted.merge_and_unload())
    except FAILURES as error:
        raise ModelError(
            f"the adapter in {folder} cannot be merged ({one_line(error)}); merge it with PEFT "
            "where it was trained, and give the whole model"
        ) from error
    # PEFT froze the base; the merged model must be trainable like any other.
    return merged.requires_grad_(True)


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter in `folder` on `base`, in place, without merging it.

    One that was trained on 4 bits gets a base that is rounded to them.

    Raises:
        ModelError: for an adapter that does not fit.
    """
    _resize_embeddings(base, folder)
    if is_on_four_bits(folder):
        round_base(base)
    adapted = _load(base, folder, "default")
    _check_names(adapted, folder, "default")
    return adapted


def _resize_embeddings(base: PreTrainedModel, folder: Path) -> None:
    """Give the base as many tokens as the adapter's own embeddings have, if it has some."""
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        return
    with opened(file) as tensors:
        own = [name for name in tensors.keys() if "embed_tokens" in name and "lora_" not in name]  # noqa: SIM118
        rows = tensors.get_slice(own[0]).get_shape()[0] if own else None
    if rows is not None and rows != base.config.vocab_size:
        base.resize_token_embeddings(rows, mean_resizing=False)


def _untie(base: PreTrainedModel) -> None:
    """Give the output layer weights of its own if an adapter changes only one end of the model.

    Tied embeddings are one tensor: what is merged into one end would change the other as well.
    """
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if not base.config.tie_word_embeddings or not any(
        isinstance(end, LoraLayer | ModulesToSaveWrapper) for end in ends
    ):
        return
    plain: list[Any] = [getattr(end, "base_layer", end) for end in ends]
    plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False


def _load(base: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{folder} has no {ADAPTER_WEIGHTS}; pickled adapters are never loaded. "
            "Save it again with safe_serialization"
        )
    try:
        if not isinstance(base, PeftModel):
            return PeftModel.from_pretrained(base, str(folder), adapter_name=name)
        base.load_adapter(str(folder), adapter_name=name)
    except SafetensorError as error:
        raise ModelCorruptError(f"{folder / ADAPTER_WEIGHTS} is damaged: {error}") from error
    except FAILURES as error:
        raise ModelError(
            f"the adapter {name!r} in {folder} does not fit: {one_line(error)}"
        ) from error
    return base


def _check_names(model: PeftModel, folder: Path, name: str) -> None:
    """Refuse a file without a weight of the adapter, or with one of no layer.

    PEFT leaves such weights at their initial values, or passes them over.
    """
    with opened(folder / ADAPTER_WEIGHTS) as tensors:
        stored = set(tensors.keys())
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    known = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=True)
    lacking, other = own.keys() - stored, stored - known.keys()
    for names, what in ((lacking, "lacks"), (other, "has, for no layer,")):
        if names:
            raise ModelError(
                f"{folder / ADAPTER_WEIGHTS} {what} {', '.join(sorted(names)[:3])}; save it again "
                "from the model that it was trained on"
            )


def _check_name(name: str) -> None:
    """Refuse a name that PEFT cannot give to a module."""
    if not name or "." in name or name == "__base__":
        raise ModelError(f"engine.adapters names one {name!r}; use letters, digits, - and _")


def _check_kind(folder: Path) -> None:
    """Refuse a config with anything that would change what other requests share."""
    defaults = vars(LoraConfig()) | {"peft_type": "LORA"}
    if is_on_four_bits(folder):
        raise ModelError(
            f"the adapter in {folder} was trained on a base of 4 bits, and requests share one of "
            "full precision; merge it instead: name its folder as the model"
        )
    config = read_json(folder / ADAPTER_CONFIG)
    kind = {"peft_type": config.get("peft_type", "LORA")}  # it decides which fields there are
    for field, value in (kind | config).items():
        plain = defaults.get(field)
        if field in CHOSEN or not value or value == plain:
            continue
        if field == "init_lora_weights" and value in SEPARATE:
            continue
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
