"""Fingerprints: equal for the same model, different for different ones."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.models import fingerprint
from llamahome.models.adapters import attach_adapters
from tests.lora import change_lora, save_lora

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_a_fingerprint_does_not_depend_on_folder_or_attention(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert fingerprint(loaded) == fingerprint(tiny_llama)
    loaded.set_attn_implementation("eager")
    assert fingerprint(loaded) == fingerprint(tiny_llama)


def test_a_fingerprint_depends_on_each_weight_the_dtype_and_the_rotary_frequencies(
    tiny_llama: LlamaForCausalLM,
) -> None:
    changed = copy.deepcopy(tiny_llama)
    changed.model.norm.weight.data[3] += 0.01
    config = copy.deepcopy(tiny_llama.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    rotated = LlamaForCausalLM(config)
    rotated.load_state_dict(tiny_llama.state_dict())
    models = [tiny_llama, changed, copy.deepcopy(tiny_llama).to(torch.bfloat16), rotated]
    assert len({fingerprint(model) for model in models}) == 4


def test_a_fingerprint_depends_on_the_order_of_rows_and_on_the_config(
    tiny_llama: LlamaForCausalLM,
) -> None:
    swapped = copy.deepcopy(tiny_llama)
    rows = swapped.model.embed_tokens.weight.data
    rows[[5, 6]] = rows[[6, 5]]
    models = [tiny_llama, swapped]
    for field, value in (("hidden_act", "gelu"), ("rms_norm_eps", 1e-3), ("logit_scale", 0.5)):
        other = copy.deepcopy(tiny_llama)
        setattr(other.config, field, value)
        models.append(other)
    assert len({fingerprint(model) for model in models}) == 5


def test_a_fingerprint_depends_on_adapters_their_names_and_scales(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    save_lora(tiny_llama, tmp_path, lora_alpha=4, target_modules=["v_proj"])

    def attached(name: str) -> str:
        return fingerprint(attach_adapters(copy.deepcopy(tiny_llama), {name: tmp_path}))

    first = attached("a")
    assert attached("a") == first
    assert len({first, attached("b"), fingerprint(tiny_llama)}) == 3
    change_lora(tmp_path, lora_alpha=8)
    assert attached("a") != first
