"""What tells two models apart, and what does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from llamahome.models import attach_adapters, fingerprint
from llamahome.models.adapters import ADAPTER_CONFIG

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_a_model_is_the_same_wherever_it_is_loaded_from(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert fingerprint(loaded) == fingerprint(tiny_llama)
    loaded.set_attn_implementation("eager")
    assert fingerprint(loaded) == fingerprint(tiny_llama)


def test_one_weight_a_precision_or_another_rotation_tells_models_apart(
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


def test_adapters_their_names_and_their_scales_count(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(tiny_llama), lora).save_pretrained(tmp_path)

    def attached(name: str) -> str:
        return fingerprint(attach_adapters(copy.deepcopy(tiny_llama), {name: tmp_path}))

    first = attached("a")
    assert attached("a") == first
    assert len({first, attached("b"), fingerprint(tiny_llama)}) == 3
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": 8}))
    assert attached("a") != first
