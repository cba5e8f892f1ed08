from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llamahome.config import ModelConfig, PolicyConfig
from llamahome.models import (
    ModelError,
    ModelManager,
    load_model,
    write_adapter_policy,
    write_policy,
)
from llamahome.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_chain
from llamahome.models.policy_io import ADAPTER_POLICY

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(12)[None]
POLICY = PolicyConfig(name="h2o", budget=48, sink=2, recent=16, interval=8)


@pytest.fixture
def adapter_folder(tiny_llama: LlamaForCausalLM, tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter whose effect is not zero, on `tiny_folder`, which carries POLICY."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    write_adapter_policy(tmp_path / "adapter", POLICY)
    return tmp_path / "adapter"


def test_an_adapter_merges_to_the_logits_of_peft(
    adapter_folder: Path, tiny_folder: Path, tiny_llama: LlamaForCausalLM, manager: ModelManager
) -> None:
    loaded = load_model(ModelConfig(name=str(adapter_folder)), manager=manager)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    expected = PeftModel.from_pretrained(base, str(adapter_folder)).eval()(IDS).logits
    assert type(loaded.model) is LlamaForCausalLM
    torch.testing.assert_close(loaded.model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - tiny_llama(IDS).logits).abs().max() > 1e-2


def test_a_merged_model_can_be_trained_and_takes_its_bases_tokenizer(
    adapter_folder: Path, manager: ModelManager
) -> None:
    loaded = load_model(ModelConfig(name=str(adapter_folder)), manager=manager)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("ab").input_ids


def test_an_adapter_folder_carries_its_policy(
    adapter_folder: Path, manager: ModelManager, tmp_path: Path
) -> None:
    loaded = load_model(ModelConfig(name=str(adapter_folder)), manager=manager)
    assert loaded.policy is not None
    assert loaded.policy.config == POLICY
    assert manager.describe(str(adapter_folder)).policy == POLICY
    loaded.model.save_pretrained(tmp_path / "merged")
    assert manager.describe(str(tmp_path / "merged")).policy == POLICY


def test_an_adapter_folder_stays_one_that_transformers_loads(
    adapter_folder: Path, manager: ModelManager
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(adapter_folder)
    ours = load_model(ModelConfig(name=str(adapter_folder)), manager=manager).model
    torch.testing.assert_close(plain(IDS).logits, ours(IDS).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_policy_takes_its_bases(
    adapter_folder: Path, tiny_folder: Path, tiny_llama: LlamaForCausalLM, manager: ModelManager
) -> None:
    (adapter_folder / ADAPTER_POLICY).unlink()
    assert load_model(ModelConfig(name=str(adapter_folder)), manager=manager).policy is None
    write_policy(tiny_llama.config, POLICY)
    tiny_llama.config.save_pretrained(tiny_folder)
    carried = load_model(ModelConfig(name=str(adapter_folder)), manager=manager).policy
    assert carried is not None
    assert carried.config == POLICY


def test_an_adapter_on_a_run_finds_the_run_by_name(
    adapter_folder: Path, tiny_folder: Path, manager: ModelManager
) -> None:
    (manager.runs_dir / "base-run").mkdir(parents=True)
    tiny_folder.rename(manager.runs_dir / "base-run" / "model")
    set_base(adapter_folder, "base-run")
    chain = adapter_chain(adapter_folder, manager.resolve)
    assert chain == [adapter_folder, manager.runs_dir / "base-run" / "model"]


def test_an_adapter_on_itself_is_refused(adapter_folder: Path, manager: ModelManager) -> None:
    set_base(adapter_folder, str(adapter_folder))
    with pytest.raises(ModelError, match="sits on it"):
        load_model(ModelConfig(name=str(adapter_folder)), manager=manager)


def test_an_adapter_that_names_no_base_is_refused(
    adapter_folder: Path, manager: ModelManager
) -> None:
    set_base(adapter_folder, None)
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        load_model(ModelConfig(name=str(adapter_folder)), manager=manager)


def test_a_pickled_adapter_is_refused(adapter_folder: Path, manager: ModelManager) -> None:
    (adapter_folder / ADAPTER_WEIGHTS).rename(adapter_folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters"):
        load_model(ModelConfig(name=str(adapter_folder)), manager=manager)


def set_base(folder: Path, name: str | None) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    config["base_model_name_or_path"] = name
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
