from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from llamahome.config import PolicyConfig
from llamahome.models import (
    EMBEDDED_MODEL,
    ModelCorruptError,
    ModelError,
    ModelManager,
    write_policy,
)


def test_the_embedded_model_is_described() -> None:
    info = ModelManager().describe(EMBEDDED_MODEL, budget=256)
    assert info.kind == "embedded"
    assert info.parameters == 134_515_008
    assert info.dtype == "float32"
    assert (info.layers, info.heads, info.kv_heads, info.head_dim) == (30, 9, 3, 64)
    assert info.context_length == 8192
    assert info.kv_bytes_per_token == 46_080
    assert info.memory_bytes == 134_515_008 * 4 + 256 * 46_080
    assert info.policy is not None
    assert info.policy.name == "learned"
    assert info.policy_entries == 205


def test_a_description_agrees_with_the_loaded_model(
    tiny_llama: LlamaForCausalLM, manager: ModelManager, tmp_path: Path
) -> None:
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="100KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    info = manager.describe(str(tmp_path / "half"))
    assert info.kind == "local"
    assert info.parameters == tiny_llama.num_parameters()
    assert info.dtype == "bfloat16"
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert info.slot_tokens == info.context_length == 2048
    assert info.memory_bytes == info.parameters * 2 + 2048 * info.kv_bytes_per_token


def test_a_slot_has_the_carried_budget_by_default(
    tiny_llama: LlamaForCausalLM, manager: ModelManager, tmp_path: Path
) -> None:
    policy = PolicyConfig(name="window", budget=48, sink=2, recent=32, interval=16)
    write_policy(tiny_llama.config, policy)
    tiny_llama.save_pretrained(tmp_path / "carrying")
    info = manager.describe(str(tmp_path / "carrying"))
    assert info.policy == policy
    assert info.slot_tokens == 48
    assert manager.describe(str(tmp_path / "carrying"), budget=0.25).slot_tokens == 512
    assert manager.describe(str(tmp_path / "carrying"), budget=100).slot_tokens == 100


def test_a_slot_of_a_pattern_has_its_average(
    tiny_llama: LlamaForCausalLM, manager: ModelManager, tmp_path: Path
) -> None:
    write_policy(tiny_llama.config, PolicyConfig(budget=200, pattern={"L0": 400, "L1H0": 800}))
    tiny_llama.save_pretrained(tmp_path / "carrying")
    info = manager.describe(str(tmp_path / "carrying"))
    assert info.slot_tokens == info.policy_entries == 450


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x08\0\0\0\0\0\0\0not json", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 64],
    ids=["empty", "garbled", "list", "long"],
)
def test_a_damaged_header_is_named(tiny_folder: Path, manager: ModelManager, damage: bytes) -> None:
    (tiny_folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelCorruptError, match=r"model\.safetensors"):
        manager.describe(str(tiny_folder))


def test_quantised_weights_are_refused(tiny_folder: Path, manager: ModelManager) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tiny_folder / "model.safetensors")
    with pytest.raises(ModelError, match="weights of I8"):
        manager.describe(str(tiny_folder))


def test_pickled_weights_are_refused(tiny_folder: Path, manager: ModelManager) -> None:
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        manager.describe(str(tiny_folder))


def test_a_models_own_code_is_never_run(tiny_folder: Path, manager: ModelManager) -> None:
    (tiny_folder / "own.py").write_text("raise SystemExit('code of a stranger ran')")
    (tiny_folder / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}'
    )
    with pytest.raises(ModelError, match=r"config\.json"):
        manager.describe(str(tiny_folder))
