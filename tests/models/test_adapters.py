from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llamahome.config import PolicyConfig
from llamahome.models import (
    LoadedModel,
    ModelError,
    ModelManager,
    write_adapter_policy,
    write_policy,
)
from llamahome.models.adapter_chain import adapter_chain
from llamahome.models.adapters import ADAPTER_WEIGHTS
from llamahome.models.policy_io import ADAPTER_POLICY
from tests.lora import change_lora, save_lora

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(12)[None]
POLICY = PolicyConfig(name="h2o", budget=48, sink=2, recent=16, interval=8)

Load = Callable[[Path], LoadedModel]


@pytest.fixture
def adapter_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter of `tiny_folder` that carries POLICY."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    folder = save_lora(base, tmp_path / "adapter", r=4, target_modules=["q_proj", "v_proj"])
    write_adapter_policy(folder, POLICY)
    return folder


def test_a_merged_adapter_gives_the_logits_of_peft(
    adapter_folder: Path, tiny_folder: Path, tiny_llama: LlamaForCausalLM, load: Load
) -> None:
    loaded = load(adapter_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    expected = PeftModel.from_pretrained(base, str(adapter_folder)).eval()(IDS).logits
    assert type(loaded.model) is LlamaForCausalLM
    torch.testing.assert_close(loaded.model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - tiny_llama(IDS).logits).abs().max() > 1e-2


def test_a_merged_model_can_be_trained_and_has_its_bases_tokenizer(
    adapter_folder: Path, load: Load
) -> None:
    loaded = load(adapter_folder)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("ab").input_ids


def test_an_adapter_folder_carries_its_policy(
    adapter_folder: Path, load: Load, manager: ModelManager, tmp_path: Path
) -> None:
    loaded = load(adapter_folder)
    assert loaded.policy is not None
    assert loaded.policy.config == POLICY
    assert manager.describe(str(adapter_folder)).policy == POLICY
    loaded.model.save_pretrained(tmp_path / "merged")
    assert manager.describe(str(tmp_path / "merged")).policy == POLICY


def test_transformers_loads_an_adapter_folder_that_carries_a_policy(
    adapter_folder: Path, load: Load
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(adapter_folder)
    ours = load(adapter_folder).model
    torch.testing.assert_close(plain(IDS).logits, ours(IDS).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_a_policy_gets_its_bases_policy(
    adapter_folder: Path, tiny_folder: Path, tiny_llama: LlamaForCausalLM, load: Load
) -> None:
    (adapter_folder / ADAPTER_POLICY).unlink()
    assert load(adapter_folder).policy is None
    write_policy(tiny_llama.config, POLICY)
    tiny_llama.config.save_pretrained(tiny_folder)
    carried = load(adapter_folder).policy
    assert carried is not None
    assert carried.config == POLICY


def test_an_adapters_base_may_be_the_name_of_a_run(
    adapter_folder: Path, tiny_folder: Path, manager: ModelManager
) -> None:
    (manager.runs_dir / "base-run").mkdir(parents=True)
    tiny_folder.rename(manager.runs_dir / "base-run" / "model")
    change_lora(adapter_folder, base_model_name_or_path="base-run")
    chain = adapter_chain(adapter_folder, manager.resolve)
    assert chain == [adapter_folder, manager.runs_dir / "base-run" / "model"]


def test_an_adapter_that_is_its_own_base_is_refused(adapter_folder: Path, load: Load) -> None:
    change_lora(adapter_folder, base_model_name_or_path=str(adapter_folder))
    with pytest.raises(ModelError, match="sits on it"):
        load(adapter_folder)


def test_an_adapter_that_names_no_base_is_refused(adapter_folder: Path, load: Load) -> None:
    change_lora(adapter_folder, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        load(adapter_folder)


def test_a_pickled_adapter_is_refused(adapter_folder: Path, load: Load) -> None:
    (adapter_folder / ADAPTER_WEIGHTS).rename(adapter_folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters"):
        load(adapter_folder)
