from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    MambaConfig,
    T5Config,
)

from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.models import (
    ModelCorruptError,
    ModelError,
    ModelManager,
    PolicyFormatError,
    load_model,
    write_policy,
    write_policy_weights,
)
from llamahome.models.load import decoder_class
from tests.linear_policy import linear_policy

__all__ = ["linear_policy"]

IDS = torch.arange(12)[None]
CARRIED = PolicyConfig(name="carried", budget=None)


def test_a_local_folder_loads_with_the_logits_it_was_saved_with(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, manager: ModelManager
) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_folder)), manager=manager)
    assert loaded.path == tiny_folder
    assert loaded.policy is None
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(loaded.model(IDS).logits, tiny_llama(IDS).logits, rtol=0, atol=0)


def test_the_dtype_that_is_asked_for_is_loaded(tiny_folder: Path, manager: ModelManager) -> None:
    config = ModelConfig(name=str(tiny_folder), dtype="bfloat16")
    assert load_model(config, manager=manager).model.dtype == torch.bfloat16


def test_a_tokenizer_without_pad_token_gets_one(tiny_folder: Path, manager: ModelManager) -> None:
    tokenizer = load_model(ModelConfig(name=str(tiny_folder)), manager=manager).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token is not None


def test_the_carried_policy_is_read(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, manager: ModelManager
) -> None:
    policy = PolicyConfig(name="h2o", budget=48, sink=2, recent=16, interval=8)
    write_policy(tiny_llama.config, policy)
    tiny_llama.config.save_pretrained(tiny_folder)
    assert (
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager).policy_for(CARRIED).config
        == policy
    )


def _with_policy(folder: Path, model: LlamaForCausalLM, policy: PolicyConfig) -> ModelConfig:
    write_policy(model.config, policy)
    model.config.save_pretrained(folder)
    return ModelConfig(name=str(folder))


def test_a_policy_that_is_asked_for_wins(
    tiny_llama: LlamaForCausalLM,
    tiny_folder: Path,
    manager: ModelManager,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = _with_policy(tiny_folder, tiny_llama, PolicyConfig())
    other = PolicyConfig(name="window", budget=64, recent=32, interval=16)
    with caplog.at_level(logging.WARNING, logger="llamahome"):
        assert load_model(model, manager=manager).policy_for(other).config == other
    assert "trained under" in caplog.text


def test_without_a_carried_policy_the_default_serves(
    tiny_folder: Path, manager: ModelManager
) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_folder)), manager=manager)
    assert loaded.policy_for(CARRIED).config == PolicyConfig()


LINEAR = PolicyConfig(name="window", budget=24, sink=2, recent=8, interval=8)
WEIGHT = torch.arange(2 * 2 * 32.0).view(2, 2, 32)


@pytest.fixture
def linear_model(
    linear_policy: None, tiny_llama: LlamaForCausalLM, tiny_folder: Path
) -> ModelConfig:
    """A folder that carries a policy with weights."""
    write_policy_weights(tiny_folder, {"weight": WEIGHT})
    return _with_policy(tiny_folder, tiny_llama, replace(LINEAR, name="linear"))


def test_weights_of_a_policy_come_with_its_checkpoint(
    linear_model: ModelConfig, manager: ModelManager
) -> None:
    loaded = load_model(linear_model, manager=manager)
    for wanted in (CARRIED, replace(LINEAR, name="linear", budget=40)):
        policy = loaded.policy_for(wanted)
        assert policy.weights is not None
        torch.testing.assert_close(policy.weights.state_dict(), {"weight": WEIGHT}, rtol=0, atol=0)
    assert loaded.policy_for(LINEAR).weights is None


def test_a_policy_with_weights_needs_a_checkpoint_that_brings_them(
    linear_policy: None, tiny_folder: Path, manager: ModelManager
) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_folder)), manager=manager)
    wanted = replace(LINEAR, name="linear")
    with pytest.raises(ConfigError, match=r"policy\.name='linear' has weights.*train under it"):
        loaded.policy_for(wanted)
    assert loaded.policy_for(wanted, new_weights=True).weights is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), r"has no policy\.safetensors"),
        (lambda file: file.write_bytes(b"no"), r"policy\.safetensors is damaged"),
        (lambda file: save_file({"weight": torch.zeros(1)}, file), "weights do not fit"),
    ],
)
def test_weights_of_a_policy_that_cannot_be_used_are_refused(
    linear_model: ModelConfig,
    manager: ModelManager,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    spoil(Path(linear_model.name) / "policy.safetensors")
    with pytest.raises(PolicyFormatError, match=message):
        load_model(linear_model, manager=manager)


def test_weights_that_are_not_all_there_are_refused(
    tiny_folder: Path, manager: ModelManager
) -> None:
    file = tiny_folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelCorruptError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager)


def test_damaged_weights_are_refused(tiny_folder: Path, manager: ModelManager) -> None:
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelCorruptError, match="damaged"):
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager)


def test_pickled_weights_are_refused(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, manager: ModelManager
) -> None:
    (tiny_folder / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), tiny_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager)


def test_a_folder_without_tokenizer_is_refused(tiny_folder: Path, manager: ModelManager) -> None:
    (tiny_folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer_config\.json"):
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager)


def test_an_encoder_is_refused_before_its_weights_are_read(
    tiny_folder: Path, manager: ModelManager
) -> None:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tiny_folder)
    with pytest.raises(ModelError, match=r"BertForMaskedLM.*no decoder-only"):
        load_model(ModelConfig(name=str(tiny_folder)), manager=manager)
    assert BertForMaskedLM.is_backend_compatible()


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="no decoder-only"):
        decoder_class(T5Config(architectures=["T5ForConditionalGeneration"]))


def test_a_model_without_the_attention_interface_is_refused() -> None:
    with pytest.raises(ModelError, match="MambaForCausalLM does not go through"):
        decoder_class(MambaConfig(architectures=["MambaForCausalLM"]))


def test_architectures_may_be_missing_from_a_config(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    del config["architectures"]
    (tiny_folder / "config.json").write_text(json.dumps(config))
    assert load_model(ModelConfig(name=str(tiny_folder))).model.num_parameters() > 0
