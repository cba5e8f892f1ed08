"""Configs read without their class, against the class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from llamahome.attention.shape import ModelShape, context_length, sliding_window
from llamahome.models.plain_config import read_plain_config

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 96,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
USED = (
    *SHAPE,
    "model_type",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "rope_parameters",
    "head_dim",
)


def _files() -> list[Any]:
    many = {**SHAPE, "eos_token_id": [2, 3]}
    return [
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        LlamaConfig(**many, head_dim=32, rope_parameters=LLAMA3),
        MistralConfig(**SHAPE, sliding_window=None),
        Qwen2Config(**SHAPE),
        Qwen3Config(**SHAPE, head_dim=48, attention_bias=True),
    ]


@pytest.mark.parametrize("config", _files(), ids=lambda config: config.model_type)
def test_a_config_means_what_its_class_says(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content.pop("layer_types", None)  # Qwen writes it, though nothing slides
    (tmp_path / "config.json").write_text(json.dumps(content))
    _check_equal(tmp_path)


def test_the_older_form_of_rope_is_read(tmp_path: Path) -> None:
    """As Llama 3.1's config.json on the hub has it."""
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    content = {
        **SHAPE,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 5e5,
        "rope_scaling": scaling,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    _check_equal(tmp_path)


def _check_equal(folder: Path) -> None:
    config, expected = read_plain_config(folder), AutoConfig.from_pretrained(folder)
    assert config is not None
    for name in USED:
        if name != "head_dim" or hasattr(expected, name):
            assert getattr(config, name) == getattr(expected, name), name
    for name in ("attention_bias", "mlp_bias"):
        assert getattr(config, name) == getattr(expected, name, False), name
    assert ModelShape.of_config(config) == ModelShape.of_config(expected)
    assert context_length(config) == context_length(expected)
    assert sliding_window(config) == sliding_window(expected)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "phi3"},
        {"num_key_value_heads": None},
        {"hidden_size": "96"},
        {"vocab_size": 0},
        {"eos_token_id": None},
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {"quant_method": "awq"}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": "default"},
        {"tie_word_embeddings": "no"},
        {"model_type": "mistral"},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64},
        {"model_type": "qwen3", "head_dim": None},
    ],
    ids=str,
)
def test_a_config_that_its_class_completes_is_left_to_it(
    change: dict[str, Any], tmp_path: Path
) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    assert read_plain_config(tmp_path) is not None
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert read_plain_config(tmp_path) is None
