"""Small models on disk, and the embedded one, converted once per machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.models import EMBEDDED_MODEL, ModelManager


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    return ModelManager().resolve(EMBEDDED_MODEL)


@pytest.fixture
def manager(tmp_path: Path) -> ModelManager:
    return ModelManager(tmp_path / "cache")


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, 256 in all, no pad token; the last byte stands for the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=alphabet[-1])


@pytest.fixture
def tiny_folder(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """`tiny_llama` as a user's own Hugging Face folder."""
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder
