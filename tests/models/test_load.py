from __future__ import annotations

import json
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

from llamahome.config import ModelConfig, PolicyConfig
from llamahome.models import (
    ModelCorruptError,
    ModelError,
    ModelManager,
    load_model,
    write_policy,
)
from llamahome.models.load import decoder_class

IDS = torch.arange(12)[None]


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
    assert load_model(ModelConfig(name=str(tiny_folder)), manager=manager).policy == policy


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
