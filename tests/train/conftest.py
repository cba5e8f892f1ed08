"""A tiny chat model and chats, small enough to train in a second."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.config import (
    DataConfig,
    ModelConfig,
    PolicyConfig,
    TrackingConfig,
    TrainerConfig,
    TrainRoot,
)
from llamahome.data import token_cache
from llamahome.models import ModelManager

WORDS = ["budget", "cache", "chunk", "evict", "gather", "heavy", "layer", "mass", "query", "sink"]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: OpenMP's threads spin, on a busy machine for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def own_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests tokenise out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A random Llama with grouped queries and tied embeddings, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=byte_tokenizer.eos_token_id,
        pad_token_id=byte_tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty chats of 60 to 130 tokens, each with its own number of tokens to learn."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    with file.open("w") as lines:
        for _ in range(40):
            question = " ".join(draw.choices(WORDS, k=4))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            lines.write(json.dumps({"messages": messages}) + "\n")
    return file


@pytest.fixture
def root(model_dir: Path, chats: Path, tmp_path: Path) -> TrainRoot:
    """Two workers under a policy that evicts, no curves; the run is tmp_path/runs/tiny."""
    return TrainRoot(
        model=ModelConfig(name=str(model_dir)),
        policy=PolicyConfig(name="h2o", budget=24, sink=2, recent=12, interval=8),
        data=DataConfig(
            train_file=str(chats), context_length=160, batching="padding", eval_fraction=0.2
        ),
        trainer=TrainerConfig(
            run_name="tiny",
            output_dir=str(tmp_path / "runs"),
            steps=8,
            batch_size=2,
            learning_rate=3e-3,
            warmup_steps=2,
            eval_every=4,
            checkpoint_every=3,
            num_workers=2,
        ),
        tracking=TrackingConfig(wandb="disabled", tensorboard=False),
    )


@pytest.fixture
def manager(tmp_path: Path) -> ModelManager:
    return ModelManager(tmp_path / "cache")
