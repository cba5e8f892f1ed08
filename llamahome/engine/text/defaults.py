"""Sampling parameters that a model's authors recommend."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from llamahome.config import ConfigError
from llamahome.requests import RequestError, SamplingParams

# Ours, and the names in generation_config.json.
NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
}


def sampling_defaults(config: GenerationConfig) -> dict[str, Any]:
    """Return the sampling parameters that a generation_config.json sets, by our names.

    Raises:
        ConfigError: for a value out of its range.
    """
    found = {ours: getattr(config, theirs, None) for ours, theirs in NAMES.items()}
    given = {name: value for name, value in found.items() if value is not None}
    if given.get("top_k") == -1:  # vLLM's other word for all tokens
        given["top_k"] = 0
    try:
        SamplingParams(**given)
    except RequestError as error:
        raise ConfigError(
            f"engine.generation_config='auto': the model's generation_config.json has "
            f"{NAMES.get(error.field, error.field)}={error.value!r}: {error.reason}; correct it, "
            "or set engine.generation_config=none"
        ) from error
    return given
