"""Models, tokenizers and policies that every part of the suite shares."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test asks a network

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.linear_policy import linear_policy

__all__ = ["linear_policy"]

OURS = ("llamahome", "cluster", "train", "serve")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and all that start Ray, with one worker of pytest-xdist.

    The long ones come first, so that no worker ends with them alone.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command that runs in this process does to logging (llamahome/logs.py)."""
    root = logging.getLogger()
    before = {logger: logger.level for logger in (root, *map(logging.getLogger, OURS))}
    handlers = list(root.handlers)
    yield
    for logger, level in before.items():
        logger.setLevel(level)
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and handler not in handlers:
            root.removeHandler(handler)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random Llama with grouped-query attention, float32, in eval mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        # Sharper attention than the default 0.02 gives, so that evicting the wrong key shows.
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token per byte, then <eos> (256) and <pad> (257)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with a chat template."""
    return make_byte_tokenizer()


@pytest.fixture
def tiny_folder(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """The tiny Llama and its tokenizer as a Hugging Face folder."""
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder
