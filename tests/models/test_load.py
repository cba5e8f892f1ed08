from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    MambaConfig,
    T5Config,
)

from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.models import (
    LoadedModel,
    ModelCorruptError,
    ModelError,
    ModelManager,
    PolicyFormatError,
    load_model,
    write_policy,
    write_policy_weights,
)
from llamahome.models.pretrained import decoder_class

IDS = torch.arange(12)[None]
CARRIED = PolicyConfig(name="carried", budget=None)

Load = Callable[[Path], LoadedModel]


def test_a_saved_model_loads_with_the_same_logits(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, load: Load
) -> None:
    loaded = load(tiny_folder)
    assert loaded.path == tiny_folder
    assert loaded.policy is None
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(loaded.model(IDS).logits, tiny_llama(IDS).logits, rtol=0, atol=0)


def test_a_model_loads_in_the_wanted_dtype(tiny_folder: Path, manager: ModelManager) -> None:
    config = ModelConfig(name=str(tiny_folder), dtype="bfloat16")
    assert load_model(config, manager=manager).model.dtype == torch.bfloat16


def test_a_tokenizer_without_pad_token_gets_one(tiny_folder: Path, load: Load) -> None:
    saved = AutoTokenizer.from_pretrained(tiny_folder)
    saved.pad_token = None
    saved.save_pretrained(tiny_folder)
    tokenizer = load(tiny_folder).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token is not None


def _write_policy(folder: Path, model: LlamaForCausalLM, policy: PolicyConfig) -> None:
    write_policy(model.config, policy)
    model.config.save_pretrained(folder)


def test_the_carried_policy_is_read(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, load: Load
) -> None:
    policy = PolicyConfig(name="h2o", budget=48, sink=2, recent=16, interval=8)
    _write_policy(tiny_folder, tiny_llama, policy)
    assert load(tiny_folder).policy_for(CARRIED).config == policy


def test_an_explicit_policy_overrides_the_carried_one(
    tiny_llama: LlamaForCausalLM,
    tiny_folder: Path,
    load: Load,
) -> None:
    _write_policy(tiny_folder, tiny_llama, PolicyConfig())
    other = PolicyConfig(name="window", budget=64, recent=32, interval=16)
    assert load(tiny_folder).policy_for(other).config == other


def test_a_model_without_a_carried_policy_gets_the_default(tiny_folder: Path, load: Load) -> None:
    assert load(tiny_folder).policy_for(CARRIED).config == PolicyConfig()


LINEAR = PolicyConfig(name="window", budget=24, sink=2, recent=8, interval=8)
WEIGHT = torch.arange(2 * 2 * 32.0).view(2, 2, 32)


@pytest.fixture
def linear_folder(linear_policy: None, tiny_llama: LlamaForCausalLM, tiny_folder: Path) -> Path:
    """A folder that carries a policy with weights."""
    write_policy_weights(tiny_folder, {"weight": WEIGHT})
    _write_policy(tiny_folder, tiny_llama, replace(LINEAR, name="linear"))
    return tiny_folder


def test_a_policys_weights_are_loaded_from_its_checkpoint(linear_folder: Path, load: Load) -> None:
    loaded = load(linear_folder)
    for wanted in (CARRIED, replace(LINEAR, name="linear", budget=40)):
        policy = loaded.policy_for(wanted)
        assert policy.weights is not None
        torch.testing.assert_close(policy.weights.state_dict(), {"weight": WEIGHT}, rtol=0, atol=0)
    assert loaded.policy_for(LINEAR).weights is None


def test_a_budget_rescales_the_carried_policy(
    linear_folder: Path, tiny_llama: LlamaForCausalLM, load: Load
) -> None:
    pattern: dict[str, int | None] = {"L0H1": 72, "L1H0": None}
    _write_policy(linear_folder, tiny_llama, replace(LINEAR, name="linear", pattern=pattern))
    loaded = load(linear_folder)
    policy = loaded.policy_for(replace(CARRIED, budget=60))
    budgets = [policy.config.budget_of(layer, head, 2) for layer in range(2) for head in range(2)]
    assert budgets == [32, 116, None, 32]  # 3 heads of 60, in proportion of 24, 72 and 24
    assert policy.weights is not None
    torch.testing.assert_close(policy.weights.state_dict(), {"weight": WEIGHT}, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"policy\.budget=9 is not allowed"):
        loaded.policy_for(replace(CARRIED, budget=9))


def test_a_budget_is_the_defaults_where_nothing_is_carried(tiny_folder: Path, load: Load) -> None:
    policy = load(tiny_folder).policy_for(replace(CARRIED, budget=60)).config
    assert (policy.name, policy.budget, policy.recent, policy.interval) == ("h2o", 60, 30, 30)


def test_a_policy_with_weights_needs_a_checkpoint_that_has_them(
    linear_policy: None, tiny_folder: Path, load: Load
) -> None:
    loaded = load(tiny_folder)
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
def test_unusable_weights_of_a_policy_are_refused(
    linear_folder: Path, load: Load, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(linear_folder / "policy.safetensors")
    with pytest.raises(PolicyFormatError, match=message):
        load(linear_folder)


def test_incomplete_weights_are_refused(tiny_folder: Path, load: Load) -> None:
    file = tiny_folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelCorruptError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tiny_folder)


def test_damaged_weights_are_refused(tiny_folder: Path, load: Load) -> None:
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelCorruptError, match="damaged"):
        load(tiny_folder)


def test_pickled_weights_are_refused(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, load: Load
) -> None:
    (tiny_folder / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), tiny_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        load(tiny_folder)


def test_a_folder_without_tokenizer_is_refused(tiny_folder: Path, load: Load) -> None:
    (tiny_folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer_config\.json"):
        load(tiny_folder)


def test_an_encoder_is_refused_before_its_weights_are_read(tiny_folder: Path, load: Load) -> None:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tiny_folder)
    with pytest.raises(ModelError, match=r"BertForMaskedLM.*no decoder-only"):
        load(tiny_folder)
    assert BertForMaskedLM.is_backend_compatible()


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="no decoder-only"):
        decoder_class(T5Config(architectures=["T5ForConditionalGeneration"]))


def test_a_model_without_the_attention_interface_is_refused() -> None:
    with pytest.raises(ModelError, match="MambaForCausalLM does not go through"):
        decoder_class(MambaConfig(architectures=["MambaForCausalLM"]))


def test_a_config_may_lack_architectures(tiny_folder: Path, load: Load) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    del config["architectures"]
    (tiny_folder / "config.json").write_text(json.dumps(config))
    assert load(tiny_folder).model.num_parameters() > 0
