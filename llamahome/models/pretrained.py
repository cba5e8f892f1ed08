"""A checkpoint as transformers' own model, with all that this import costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llamahome.models.adapters import merge_adapter
from llamahome.models.describe import read_config
from llamahome.models.errors import ModelCorruptError, ModelError, one_line
from llamahome.models.probe import check_layers, check_outputs
from llamahome.models.weight_files import weight_files

logger = logging.getLogger(__name__)

# Each class of transformers fails in its own way for numbers that do not fit together.
FAILURES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)


def load_pretrained(chain: list[Path], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load the model of an `adapter_chain`, in eval mode, its adapters merged into their base.

    Raises:
        ModelCorruptError: for damaged or incomplete weights.
        ModelError: for a model that is no decoder with transformers' attention interface, or whose
            answers would differ from transformers'.
    """
    model: Any = _load_weights(chain[-1], dtype)
    for adapter in reversed(chain[:-1]):
        model = merge_adapter(model, adapter)
    model.to(device)
    if not is_deepspeed_zero3_enabled():  # which leaves a worker only a part of each weight
        check_outputs(model.eval(), chain[0])
    return cast(PreTrainedModel, model.eval())


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of `config`'s model: a decoder whose attention can be replaced.

    Raises:
        ModelError: for any other model.
    """
    model_class = cast(
        "type[PreTrainedModel] | None", MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    )
    named = config.architectures or []
    if model_class is None or (named and model_class.__name__ not in named):
        raise ModelError(
            f"model_type={config.model_type!r} "
            f"({', '.join(map(str, named)) or 'no architecture named'}) is no decoder-only "
            "language model; use one like Llama, SmolLM2, Mistral or Qwen"
        )
    if not model_class.is_backend_compatible():
        raise ModelError(
            f"{model_class.__name__} does not go through transformers' attention interface, so no "
            "policy can be applied to it; use a model like Llama, SmolLM2, Mistral or Qwen"
        )
    return model_class


def _load_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    config = read_config(folder)
    model_class = decoder_class(config)
    check_layers(config, folder)
    weight_files(folder)
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelCorruptError(f"weights in {folder} are damaged: {error}") from error
    except FAILURES as error:
        raise ModelError(
            f"{folder}: config.json and the weights do not make a model ({one_line(error)}); get "
            "the model again"
        ) from error
    model, report = loaded
    # transformers fills missing weights with random numbers and only warns.
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelCorruptError(f"weights in {folder} lack {names}; get the model again")
    if report["unexpected_keys"]:
        names = ", ".join(sorted(report["unexpected_keys"])[:3])
        logger.warning("weights in %s have %s, ..., which config.json does not use", folder, names)
    return cast(PreTrainedModel, model)
