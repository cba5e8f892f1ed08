from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llamahome.config import ModelConfig
from llamahome.models import load_model
from llamahome.models.checksums import file_sha256, verify_checksums
from llamahome.models.embedded import ensure_embedded

# The hash of model.safetensors as transformers 5.23 writes it, after
# AutoModelForCausalLM.from_pretrained(..., gguf_file=..., dtype=float32,
# quantization_config=GgufConfig(dequantize=True)).save_pretrained(...).
TRANSFORMERS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"


@pytest.fixture(scope="module")
def tokenizer(embedded_model_dir: Path) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(embedded_model_dir)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def test_weights_equal_transformers_dequantisation_bit_for_bit(
    embedded_model_dir: Path,
) -> None:
    assert file_sha256(embedded_model_dir / "model.safetensors") == TRANSFORMERS_SHA256


def test_the_converted_folder_matches_its_checksums(embedded_model_dir: Path) -> None:
    assert verify_checksums(embedded_model_dir, "cure") == 7


def test_it_carries_a_policy_that_was_made_for_it(embedded_model_dir: Path) -> None:
    loaded = load_model(ModelConfig(name=str(embedded_model_dir)))
    assert loaded.policy is not None
    config = loaded.policy.config
    assert config.name == "learned"
    assert config.average(30, 3, 2048) == 205
    weights = loaded.policy.weights
    assert weights is not None
    assert all(weight.dtype == torch.float32 for weight in weights.parameters())
    assert float(next(iter(weights.parameters())).detach().abs().max()) > 0


def test_a_folder_of_an_older_version_is_converted_anew(
    embedded_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_model_dir, folder)
    ensure_embedded(folder)
    before = (folder / "policy.safetensors").stat().st_ino
    ensure_embedded(folder)
    assert (folder / "policy.safetensors").stat().st_ino == before
    (folder / "policy.safetensors").write_bytes(b"of an older version")
    ensure_embedded(folder)
    assert verify_checksums(folder, "cure") == 7
    assert load_model(ModelConfig(name=str(folder))).policy is not None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("one:\n\n1. a", ["one", ":", "ĊĊ", "1", ".", "Ġa"]),
        ("12  34", ["1", "2", "ĠĠ", "3", "4"]),
    ],
)
def test_digits_are_split_before_the_merges(
    tokenizer: PreTrainedTokenizerFast, text: str, tokens: list[str]
) -> None:
    assert tokenizer.tokenize(text) == tokens


def test_text_survives_the_tokenizer_without_a_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Don't  panic:\n\t42 été, 日本語 🦙"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_tokenizer_has_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_embedded_model_knows_the_capital_of_france(
    embedded_model_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(embedded_model_dir)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    new = answer[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "The capital of France is Paris.<|im_end|>"


def _convert(folder: Path) -> None:
    """Convert with interrupts enabled, which a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ensure_embedded(folder)


def test_an_interrupted_conversion_leaves_nothing_and_two_concurrent_ones_make_one_folder(
    tmp_path: Path,
) -> None:
    folder, partial = tmp_path / "model", tmp_path / "model.partial"
    # The server imports the product once, so its children need not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llamahome.models.embedded"])

    def start() -> BaseProcess:
        process = context.Process(target=_convert, args=(folder,))
        process.start()
        return process

    interrupted = start()
    deadline = time.monotonic() + 120
    while not list(partial.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert interrupted.pid is not None
    os.kill(interrupted.pid, signal.SIGINT)
    interrupted.join(60)
    assert interrupted.exitcode == 1
    assert not folder.exists()
    assert not partial.exists()

    partial.mkdir()
    (partial / "of_a_killed_process").touch()
    both = [start(), start()]
    for process in both:
        process.join(180)
    assert [process.exitcode for process in both] == [0, 0]
    assert verify_checksums(folder, "cure") == 7
    assert not (folder / "of_a_killed_process").exists()
    assert not partial.exists()
