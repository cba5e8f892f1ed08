"""Folders that are broken: each ends in one line that names the file and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import TextEngine
from llamahome.models import ModelError, ModelManager, load_model
from llamahome.models.adapters import ADAPTER_WEIGHTS, merge_adapter
from tests.lora import change_lora, save_lora

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns before it fails

Spoil = Callable[[Path], object]

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """A model in several shards."""
    tiny_llama.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    return tmp_path / "model"


def _text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def _bytes(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str) -> Spoil:
    def cut(folder: Path) -> None:
        file = next(folder.glob(name))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def _lose(name: str) -> Spoil:
    return lambda folder: next(folder.glob(name)).unlink()


def _field(name: str, value: Any, file: str = "config.json") -> Spoil:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, name: value}))

    return change


BROKEN: dict[str, tuple[Spoil, str]] = {
    "lost shard": (_lose("model-00002*"), r"model-00002.*is missing; get it again"),
    "cut shard": (_cut("model-00002*"), r"damaged"),
    "lost index": (_lose(INDEX), r"index\.json.*is lost; get it again"),
    "cut index": (_cut(INDEX), r"index\.json is no JSON"),
    "empty index": (_text(INDEX, "{}"), r"index\.json has no weight_map"),
    "index outside": (_field("weight_map", {"a": "../x"}, INDEX), r"x, which .* is missing"),
    "no config": (_text("config.json", ""), r"config\.json is no JSON"),
    "list for config": (_text("config.json", "[]"), r"config\.json holds no object"),
    "bytes for config": (_bytes("config.json", b"\xff\xfe"), r"config\.json is no JSON"),
    "unknown type": (_field("model_type", "llamb"), r"config\.json: it cannot be used"),
    "no type": (_field("model_type", None), r"config\.json: it cannot be used"),
    "text for heads": (_field("num_attention_heads", "4"), r"config\.json: it cannot be used"),
    "no heads": (_field("num_attention_heads", 0), r"config\.json: it cannot be used"),
    "odd heads": (_field("num_attention_heads", 3), r"config\.json"),
    "odd KV heads": (_field("num_key_value_heads", 3), r"model"),
    "other size": (_field("hidden_size", 32), r"do not make a model"),
    "more layers": (_field("num_hidden_layers", 3), r"lack model\.layers\.2"),
    "other vocabulary": (_field("vocab_size", 300), r"do not make a model"),
    "no activation": (_field("hidden_act", "sulu"), r"do not make a model"),
    "odd rope": (_field("rope_parameters", {"rope_type": "twist"}), r"model"),
    "awq": (_field("quantization_config", {"quant_method": "awq"}), r"quant_method='awq'"),
    "gptq": (_field("quantization_config", {"quant_method": "gptq"}), r"quant_method='gptq'"),
    "odd quantization": (_field("quantization_config", "int3"), r"quant_method='int3'"),
    "cut tokenizer": (_cut("tokenizer.json"), r"tokenizer\.json is no JSON"),
    "empty tokenizer": (_text("tokenizer.json", "{}"), r"tokenizer in .* cannot be loaded"),
    "lost tokenizer": (_lose("tokenizer.json"), r"tokenizer in .*its tokenizer\.json"),
    "cut tokenizer config": (_cut("tokenizer_config.json"), r"tokenizer_config\.json is no JSON"),
    "odd chat template": (
        _text("chat_template.jinja", "hello\n{% for %}"),
        r"chat_template\.jinja: line 2 of the chat template",
    ),
    "no generation config": (_text("generation_config.json", "{"), r"generation_config\.json"),
    "text for eos": (
        _field("eos_token_id", "</s>", "generation_config.json"),
        r"generation_config\.json: eos_token_id='</s>'",
    ),
    "other policy": (_field("llamahome", {"format": 9, "policy": {}}), r"llamahome\.format=9"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(
    name: str, folder: Path, manager: ModelManager
) -> None:
    spoil, message = BROKEN[name]
    spoil(folder)
    model = ModelConfig(name=str(folder))
    carried, engine = PolicyConfig(name="carried", budget=None), EngineConfig(slots=1)
    for load in (
        lambda: load_model(model, manager=manager),
        lambda: TextEngine.load(model, carried, engine, manager=manager),
    ):
        with pytest.raises(ModelError, match=message) as error:
            load()
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_generation_config_decides_where_answers_end(folder: Path, manager: ModelManager) -> None:
    _field("eos_token_id", [7, 9], "generation_config.json")(folder)
    loaded = load_model(ModelConfig(name=str(folder)), manager=manager)
    assert loaded.model.generation_config.eos_token_id == [7, 9]


def test_an_adapter_with_more_tokens_is_merged(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    """PEFT saves the embeddings of a model that was given new tokens."""
    torch.manual_seed(1)
    grown = LlamaForCausalLM(LlamaConfig(**{**tiny_llama.config.to_dict(), "vocab_size": 264}))
    save_lora(grown, tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    weights = load_file(tmp_path / ADAPTER_WEIGHTS)
    merged = merge_adapter(tiny_llama, tmp_path)
    assert merged.config.vocab_size == 264
    embedding = next(value for name, value in weights.items() if "embed_tokens" in name)
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert merged(torch.tensor([[263]])).logits.shape == (1, 1, 264)


def _lora_bias(base: LlamaForCausalLM, folder: Path) -> None:
    save_lora(base, folder)
    change_lora(folder, lora_bias=True)
    weights = load_file(folder / ADAPTER_WEIGHTS)
    weights |= {
        name.replace("lora_B.weight", "lora_B.bias"): torch.ones(len(weight))
        for name, weight in weights.items()
        if "lora_B" in name
    }
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def test_biases_that_no_layer_can_take_are_refused(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    _lora_bias(tiny_llama, tmp_path)
    with pytest.raises(ModelError, match=r"cannot be merged .*bias") as error:
        merge_adapter(tiny_llama, tmp_path)
    assert "\n" not in str(error.value)
