"""Models that load with other numbers than transformers' are refused; windows end the context."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    DiffLlamaConfig,
    Lfm2Config,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from llamahome.attention import HybridAttention, build_policy
from llamahome.attention.shape import context_length, exact_length
from llamahome.cache import Slots
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import TextEngine
from llamahome.models import ModelError, ModelManager
from llamahome.models.pretrained import decoder_class
from llamahome.models.probe import check_layers, check_outputs
from tests.conftest import make_byte_tokenizer
from tests.models.architectures import tiny_config, tiny_model

FULL = PolicyConfig(name="full", budget=None)
FOLDER = Path("some") / "folder"


def tiny(config_class: type[PreTrainedConfig], **changes: object) -> PreTrainedModel:
    config = tiny_config(config_class)
    config.update(changes)
    return tiny_model(decoder_class(config), config)


def test_a_model_that_computes_something_else_is_refused_by_folder_and_type() -> None:
    with pytest.raises(ModelError, match=rf"{FOLDER}: model_type='diffllama' .* off by .* nats"):
        check_outputs(tiny(DiffLlamaConfig), FOLDER)


def test_a_model_that_runs_is_left_as_it_was() -> None:
    model = tiny(MistralConfig)
    before = model.config._attn_implementation
    check_outputs(model, FOLDER)
    assert model.config._attn_implementation == before


def test_a_layer_with_a_state_is_refused_before_loading() -> None:
    config = Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"config\.json: layer_types has conv"):
        check_layers(config, FOLDER)


LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("config", "exact"),
    [
        (MistralConfig(sliding_window=64), 64),
        (MistralConfig(sliding_window=None), None),
        (Qwen2Config(sliding_window=64), None),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=0), 64),
        (tiny_config(Phi3Config), 64),
    ],
)
def test_a_window_ends_what_is_exact(config: PreTrainedConfig, exact: int | None) -> None:
    assert exact_length(config) == exact
    assert context_length(config) == min(config.max_position_embeddings, exact or 2**40)


@pytest.mark.filterwarnings("ignore")  # transformers warns about the field's name
def test_longrope_ends_with_its_first_range() -> None:
    config = tiny_config(Phi3Config)
    config.update({"rope_parameters": LONG, "sliding_window": None})
    assert exact_length(config) == 32


def test_slots_and_rows_beyond_a_window_are_refused() -> None:
    model = tiny(MistralConfig)
    policy = build_policy(FULL, model)
    with pytest.raises(ValueError, match="max_length=65: the model is exact up to 64 tokens"):
        Slots(model, policy, num_slots=1, max_length=65)
    attention = HybridAttention(policy, model)
    HybridAttention.attach(model)
    for tokens in (64, 65):
        ids = torch.arange(tokens)[None]
        call = {"position_ids": attention.position_ids(ids), "use_cache": False}
        if tokens == 64:
            model(ids, hybrid=attention, **call)
            continue
        with pytest.raises(ValueError, match=re.escape("65 tokens are more than MistralAttention")):
            model(ids, hybrid=attention, **call)


def test_an_engine_is_cut_to_the_window(tmp_path: Path) -> None:
    tiny(MistralConfig).save_pretrained(tmp_path / "windowed")
    make_byte_tokenizer().save_pretrained(tmp_path / "windowed")
    named = ModelConfig(name=str(tmp_path / "windowed"))
    engine = TextEngine.load(named, FULL, EngineConfig(slots=1), manager=ModelManager(tmp_path))
    assert engine.max_length == 64
