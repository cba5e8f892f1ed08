"""Adapters that requests choose among: which ones fit, and how others are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.models import ModelError
from llamahome.models.adapters import ADAPTER_WEIGHTS, attach_adapters
from tests.lora import change_lora, save_lora

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_several_adapters_are_attached_by_name(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    folders = {
        "sql": save_lora(tiny_llama, tmp_path / "one"),
        "law": save_lora(
            tiny_llama, tmp_path / "two", r=5, target_modules=["v_proj"], modules_to_save=["norm"]
        ),
    }
    model = attach_adapters(tiny_llama, folders)
    assert list(model.peft_config) == ["sql", "law"]
    assert not model.training


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora=True.*only False; merge the adapter"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "changes lm_head"),
        ({"target_modules": ["embed_tokens"]}, r"changes model\.embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "changes lm_head"),
        ({"modules_to_save": ["down_proj"]}, r"changes model\.layers\.0\.mlp\.down_proj"),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Adapter 'default'")
def test_an_adapter_that_changes_shared_weights_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True))
    folder = save_lora(base, tmp_path / "other", **changes)
    with pytest.raises(ModelError, match=reason):
        attach_adapters(base, {"other": folder})


def test_an_adapter_other_than_lora_is_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(copy.deepcopy(tiny_llama), prefix).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="peft_type='PREFIX_TUNING'"):
        attach_adapters(tiny_llama, {"prefix": tmp_path})


@pytest.mark.parametrize("name", ["", "v1.2", "__base__"])
def test_names_that_peft_cannot_hold_are_refused(
    name: str, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    folder = save_lora(tiny_llama, tmp_path / "one")
    with pytest.raises(ModelError, match=r"engine\.adapters names one"):
        attach_adapters(tiny_llama, {name: folder})


def test_folders_without_an_adapter_are_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="there is no adapter to attach"):
        attach_adapters(tiny_llama, {})
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        attach_adapters(tiny_llama, {"none": tmp_path})
    folder = save_lora(tiny_llama, tmp_path / "one")
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters are never loaded"):
        attach_adapters(tiny_llama, {"pickled": folder})


def test_an_adapter_of_another_model_is_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    wider = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=96,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    folder = save_lora(wider, tmp_path / "wider")
    with pytest.raises(ModelError, match=r"(?s)'wider' in .* does not fit: .*size mismatch"):
        attach_adapters(copy.deepcopy(tiny_llama), {"wider": folder})
    change_lora(folder, target_modules=["no_such_proj"])
    with pytest.raises(ModelError, match=r"does not fit: .*no_such_proj"):
        attach_adapters(copy.deepcopy(tiny_llama), {"wider": folder})
