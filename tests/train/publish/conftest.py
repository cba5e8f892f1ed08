"""A tiny model with a tokenizer that llama.cpp knows, and a finished run of it with an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as decoding
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from llamahome.config import DataConfig, ModelConfig, PolicyConfig, TrainerConfig, TrainRoot
from llamahome.models import ModelManager, write_adapter_policy
from llamahome.models.four_bits import write_mark
from tests.lora import save_lora
from train import metrics
from train.publish.gguf_tokenizer import SPLITS
from train.publish.source import Source, find_source
from train.runs.environment import write_environment
from train.runs.folder import ADAPTER, MODEL, RUN_FILE

TEXT = (
    "It was a bright cold day in April, and the clocks were striking thirteen.\n\n"
    "Don't count 1234 sheep; they'LL say 56, I've 789!   x = [i + 1 for i in range(10)]\t\r\n"
    "ein Café, naïve, 日本語, \U0001f999 end "
) * 3
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 384
POLICY = PolicyConfig(name="h2o", budget=24, sink=2, recent=12, interval=8)


def trained_tokenizer(split: str) -> PreTrainedTokenizerFast:
    """Train a tokenizer of byte-level BPE that splits text as llama.cpp's `split` does."""
    steps, whole_words = SPLITS[split]
    backend = Tokenizer(models.BPE(ignore_merges=whole_words))
    pre: dict[str, Any] = {
        "type": "Sequence",
        "pretokenizers": [{"trim_offsets": True, **s} for s in steps],
    }
    for step in pre["pretokenizers"]:
        if step["type"] != "ByteLevel":
            step.pop("trim_offsets")
    backend = Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), "pre_tokenizer": pre}))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 8,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    backend.decoder = decoding.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def save_model(folder: Path, config: Any, split: str = "smollm") -> Path:
    """Save a random model of a config, and a tokenizer."""
    torch.manual_seed(0)
    tokenizer = trained_tokenizer(split)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(config: Any = LlamaConfig, **changes: Any) -> Any:
    """Return a config of a small model with grouped queries."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    return config(**{**values, **changes})


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "tiny", small())


def save_run(
    runs_dir: Path,
    base: Path,
    name: str = "small",
    *,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> Path:
    """Write a finished LoRA run of `base`, whose model has the adapter merged in by PEFT."""
    directory = runs_dir / name
    directory.mkdir(parents=True)
    data = runs_dir.parent / "secret place" / "chats.jsonl"
    data.parent.mkdir(exist_ok=True)
    data.write_text('{"messages": []}\n' * 3)
    root = TrainRoot(
        model=ModelConfig(name=str(base)),
        policy=POLICY,
        data=DataConfig(train_file=str(data), mix=["owner/chats"], mix_times=[1.0]),
        trainer=TrainerConfig(
            run_name=name, output_dir=str(runs_dir), method="lora", steps=2, learning_rate=3e-3
        ),
    )
    (directory / RUN_FILE).write_text(json.dumps(asdict(root)))
    for record in ({"step": 0, "eval_loss": 3.0}, {"step": 2, "eval_loss": 2.5}):
        metrics.append(directory, record)
    write_environment(directory)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)  # adapters whose rounding is the same, whatever ran before
    adapter = save_lora(model, directory / ADAPTER, target_modules=list(targets))
    write_adapter_policy(adapter, POLICY)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    if "lm_head" in targets:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(directory / MODEL)
    return directory


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs", base)


@pytest.fixture
def source(run: Path, manager: ModelManager) -> Source:
    return find_source(run.name, run.parent, manager)


@pytest.fixture
def four_bits(run: Path, manager: ModelManager) -> Source:
    """A run whose adapter was trained on a base of 4 bits."""
    write_mark(run / ADAPTER)
    return find_source(run.name, run.parent, manager)


def logits(model: Any) -> torch.Tensor:
    """Return a model's logits (1, 40, V) of some tokens, without gradient."""
    with torch.no_grad():
        return model.eval()(torch.arange(3, 43)[None], use_cache=False).logits


def adapted_in_four_bits(base: Path, run: Path) -> torch.Tensor:
    """Return the logits that bitsandbytes and PEFT compute with the adapter on."""
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=bits, device_map={"": "cpu"}, dtype=torch.float32
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # in bf16, and of some shapes alone
            module.support_avx512bf16_for_cpu = False
    return logits(PeftModel.from_pretrained(model, run / ADAPTER))
