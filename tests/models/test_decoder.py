"""Decoders read without modelling code, against transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedModel

from llamahome.models.adapters import attach_adapters
from llamahome.models.decoder import Decoder, read_decoder, rotary_angles
from llamahome.models.describe import read_config
from tests.engine.random_models import random_llama, random_qwen2, random_qwen3
from tests.lora import save_lora

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
]


def _read(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder | None:
    return read_decoder(folder, read_config(folder), dtype, GenerationConfig())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["50KB", "1GB"])
@pytest.mark.parametrize("build", [random_llama, random_qwen2, random_qwen3])
def test_weights_are_those_of_transformers_model(
    build: Callable[..., PreTrainedModel], shard: str, tied: bool, tmp_path: Path
) -> None:
    model = build(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    decoder = _read(tmp_path)
    assert decoder is not None
    own = Decoder.of(model)
    assert decoder.tensors.keys() == own.tensors.keys()
    for name, tensor in own.tensors.items():
        torch.testing.assert_close(decoder.tensors[name], tensor, rtol=0, atol=0)


def test_a_dtype_rounds_the_weights(tmp_path: Path) -> None:
    model = random_llama()
    model.save_pretrained(tmp_path)
    decoder = _read(tmp_path, torch.bfloat16)
    assert decoder is not None
    assert decoder.dtype == torch.bfloat16
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(decoder.tensors[name], model.state_dict()[name].bfloat16())


def _fewer(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.norm.weight"]


def _other_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(8)


def _more(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(96)


def _doubles(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"].double()


@pytest.mark.parametrize("change", [_fewer, _other_shape, _more, _doubles])
def test_what_transformers_has_to_look_at_is_left_to_it(
    change: Callable[[dict[str, torch.Tensor]], None], tmp_path: Path
) -> None:
    random_llama().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    assert _read(tmp_path) is None


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_rotary_angles_are_the_models(rope: dict[str, Any]) -> None:
    model: Any = random_llama(rope_parameters={"rope_theta": 10_000.0, **rope})
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1), torch.arange(300)[None])
    half = cos.shape[-1] // 2
    ours = rotary_angles(model.config, 300)
    torch.testing.assert_close(ours, (cos[0, :, :half], sin[0, :, :half]), rtol=0, atol=1e-6)


# peft 0.21 asks transformers 5.23 for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_apart_from_the_weights(tmp_path: Path) -> None:
    base = random_llama()
    folder = save_lora(
        base, tmp_path / "one", target_modules=["q_proj"], modules_to_save=["norm"], lora_alpha=6
    )
    before = Decoder.of(random_llama())
    adapted: Any = attach_adapters(base, {"one": folder})
    decoder = Decoder.of(adapted)
    assert decoder.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert torch.equal(decoder.tensors[name], tensor), name
    adapter = decoder.adapters["one"]
    assert "model.norm" in adapter.norms
    module = "model.layers.1.self_attn.q_proj"
    down, up = adapter.pairs[module]
    merged: Any = adapted.merge_and_unload()
    own: LlamaForCausalLM = merged
    torch.testing.assert_close(
        before.tensors[f"{module}.weight"] + up @ down, own.state_dict()[f"{module}.weight"]
    )


def test_a_quantized_model_is_left_to_transformers(tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path)
    config = read_config(tmp_path)
    config.quantization_config = {"quant_method": "awq"}
    assert read_decoder(tmp_path, config, torch.float32, GenerationConfig()) is None
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
