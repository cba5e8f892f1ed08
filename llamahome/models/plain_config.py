"""A config.json that says everything itself, read without its class.

LlamaConfig alone imports a second's worth of modelling code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from llamahome.models.decoder import FAMILIES
from llamahome.models.errors import CONFIG_FAILURES
from llamahome.models.json_files import read_json

NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
STATED = (*NUMBERS, "rms_norm_eps", "hidden_act", "eos_token_id")
# Fields that are false in all of `FAMILIES` unless a file says otherwise.
UNSTATED = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
# Fields that change what others mean.
OTHER = ("quantization_config", "partial_rotary_factor", "layer_types", "per_layer_config")


def read_plain_config(folder: Path) -> PreTrainedConfig | None:
    """Read `folder`'s config.json; None where only its class knows what it means.

    Raises:
        ModelCorruptError: for a file that is no JSON object.
    """
    content = read_json(folder / "config.json")
    rope = _rope(content)
    if rope is None or not _is_plain(content):
        return None
    stated = {"head_dim": content["hidden_size"] // content["num_attention_heads"]}
    stated |= dict.fromkeys(UNSTATED, False) | content | {"rope_parameters": rope}
    for legacy in ("rope_theta", "rope_scaling", "transformers_version"):
        stated.pop(legacy, None)
    try:
        config = PreTrainedConfig(**stated)
    except CONFIG_FAILURES:
        return None  # its class says what is wrong
    config.__dict__["model_type"] = content["model_type"]  # an attribute of a class elsewhere
    return config


def _is_plain(content: dict[str, Any]) -> bool:
    family = content.get("model_type")
    if family not in FAMILIES or any(content.get(field) is not None for field in OTHER):
        return False
    if any(type(content.get(field)) is not int or content[field] < 1 for field in NUMBERS):
        return False
    if any(content.get(field) is None for field in STATED):
        return False
    if type(content["rms_norm_eps"]) is not float or type(content["hidden_act"]) is not str:
        return False
    if any(type(content.get(field, False)) is not bool for field in UNSTATED):
        return False
    if content.get("use_sliding_window", False):
        return False
    # Classes have own defaults for these two.
    slides = family == "mistral" and content.get("sliding_window", 0) is not None
    return not slides and (family != "qwen3" or type(content.get("head_dim")) is int)


def _rope(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return rope_parameters, of which hub configs have an older form; None for rarer kinds."""
    rope = content.get("rope_parameters")
    if rope is None:
        rope = {"rope_theta": content.get("rope_theta"), **(content.get("rope_scaling") or {})}
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), int | float):
        return None
    known = {"default": set[str](), "llama3": {"original_max_position_embeddings"}}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in known or not known[kind] <= rope.keys() or "partial_rotary_factor" in rope:
        return None
    return rope | {"rope_type": kind}
