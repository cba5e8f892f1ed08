"""A model's folder once more, carrying another policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from llamahome.config import ModelConfig, PolicyConfig
from llamahome.models import ModelManager, copy_with_policy, load_model
from tests.policies import built

CONFIG = PolicyConfig(name="learned", budget=40, recent=20, interval=16, pattern={"L1H0": 60})


def test_the_copy_is_the_same_model_under_the_policy(
    tiny_folder: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    policy = built(CONFIG, tiny_llama)
    copy_with_policy(tiny_folder, tmp_path / "copy", policy)
    loaded = load_model(ModelConfig(name=str(tmp_path / "copy")))
    assert loaded.policy is not None
    assert loaded.policy.config == CONFIG
    assert loaded.policy.digest() == policy.digest()
    before = load_model(ModelConfig(name=str(tiny_folder)))
    for name, weight in before.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    assert ModelManager().verify(str(tmp_path / "copy")) >= 4
    assert before.policy is None


def test_another_policy_takes_the_place_of_one_that_is_carried(
    tiny_folder: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    copy_with_policy(tiny_folder, first, built(CONFIG, tiny_llama))
    h2o = built(PolicyConfig(budget=40, recent=20, interval=16))
    copy_with_policy(first, second, h2o)
    loaded = load_model(ModelConfig(name=str(second)))
    assert loaded.policy is not None
    assert loaded.policy.config == h2o.config
    assert not (second / "policy.safetensors").exists()
    assert (
        json.loads((first / "config.json").read_text())["llamahome"]["policy"]["name"] == "learned"
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapters_copy_is_an_adapter(
    tiny_folder: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    adapted = get_peft_model(tiny_llama, LoraConfig(r=2, target_modules=["v_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    policy = built(CONFIG, tiny_llama)
    copy_with_policy(tmp_path / "adapter", tmp_path / "copy", policy)
    loaded = load_model(ModelConfig(name=str(tmp_path / "copy")))
    assert loaded.policy is not None
    assert loaded.policy.digest() == policy.digest()
