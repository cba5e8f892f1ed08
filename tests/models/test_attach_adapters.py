"""Adapters that requests choose among: which ones fit, and how others are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.models import ModelCorruptError, ModelError
from llamahome.models.adapter_chain import ADAPTER_CONFIG
from llamahome.models.adapters import (
    ADAPTER_WEIGHTS,
    attach_adapters,
    merge_adapter,
)
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


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices="),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication="),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens="),
        ({"of_a_later_peft": {"a": 1}}, "of_a_later_peft="),
    ],
)
def test_a_field_that_changes_what_others_share_is_refused(
    changes: dict[str, Any], field: str, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    folder = save_lora(tiny_llama, tmp_path / "one")
    change_lora(folder, **changes)
    with pytest.raises(ModelError, match=rf"{ADAPTER_CONFIG}: {field}.*; merge the adapter"):
        attach_adapters(tiny_llama, {"one": folder})


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_a_file_with_other_weights_than_its_config_asks_for_is_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    folder = save_lora(tiny_llama, tmp_path / "one")
    file = folder / ADAPTER_WEIGHTS
    weights = load_file(file)
    first = next(name for name in weights if "lora_A" in name)
    lacking = {name: weight for name, weight in weights.items() if name != first}
    save_file(lacking, file)
    with pytest.raises(ModelError, match=f"lacks {first}; save it again"):
        attach_adapters(copy.deepcopy(tiny_llama), {"one": folder})
    with pytest.raises(ModelError, match=f"lacks {first}"):
        merge_adapter(copy.deepcopy(tiny_llama), folder)
    save_file({**weights, "layers.9.q_proj.lora_A.weight": weights[first].clone()}, file)
    with pytest.raises(ModelError, match=r"has, for no layer, layers\.9\.q_proj"):
        attach_adapters(copy.deepcopy(tiny_llama), {"one": folder})


def test_broken_files_of_an_adapter_are_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    folder = save_lora(tiny_llama, tmp_path / "one")
    whole = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(whole[: len(whole) // 2])
    for load in (
        lambda base: attach_adapters(base, {"one": folder}),
        lambda base: merge_adapter(base, folder),
    ):
        with pytest.raises(ModelCorruptError, match=f"{ADAPTER_WEIGHTS} is damaged"):
            load(copy.deepcopy(tiny_llama))
    for text, reason in (("{", "is no JSON"), ("[]", "holds no object"), ("\udcff", "is no JSON")):
        (folder / ADAPTER_CONFIG).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ModelError, match=reason):
            attach_adapters(tiny_llama, {"one": folder})


def test_what_cannot_be_merged_says_so(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = save_lora(tiny_llama, tmp_path / "one")
    change_lora(folder, alora_invocation_tokens=[7])
    with pytest.raises(ModelError, match="alora_invocation_tokens start the adapter amid a text"):
        merge_adapter(tiny_llama, folder)
