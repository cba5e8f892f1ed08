"""GGUF files, as llama.cpp and transformers compute them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from llamahome.models import ModelManager
from tests.train.engine import QUIET
from tests.train.publish.conftest import adapted_in_four_bits, logits, save_model, small
from tests.train.publish.llama_cpp import llama_cpp
from train.errors import ExportError
from train.publish.gguf_file import check_gguf, interleave_rotary_halves, write_gguf
from train.publish.source import Source, find_source

pytestmark = QUIET
IDS = list(range(3, 190))
THETA = {"rope_theta": 10000.0}
LLAMA3 = {
    **THETA,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {**THETA, "rope_type": "linear", "factor": 4.0}
CONFIGS = {
    "llama": small(),
    "llama, untied, of other heads": small(tie_word_embeddings=False, head_dim=32),
    "llama, llama3": small(rope_parameters=LLAMA3),
    "llama, linear": small(rope_parameters=LINEAR),
    "mistral": small(MistralConfig, sliding_window=None, tie_word_embeddings=False),
    "qwen2": small(Qwen2Config),
    "qwen3": small(Qwen3Config, head_dim=32),
}
# Mean difference of log-probabilities, in nats, of rounded weights, and of llama.cpp, which rounds
# activations as well: three times what eight random adapters had at most.
ROUNDED = {"f32": 1e-5, "f16": 6e-3, "bf16": 5e-2, "q8_0": 0.16}
CLOSE = {"f32": 1e-4, "f16": 1.5e-2, "bf16": 0.12, "q8_0": 0.35}


def written(source: Source, quantization: str, file: Path) -> float:
    return write_gguf(source, check_gguf(source, allow_dense=True), quantization, file)


def gap(file: Path, model: Any) -> float:
    """Return how far llama.cpp's log-probabilities are from the model's, in nats."""
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        expected = model.eval()(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)
    with llama_cpp(file) as peer:
        return float((peer.log_probs(IDS, vocabulary) - expected).abs().mean())


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_what_transformers_does(
    name: str, tmp_path: Path, manager: ModelManager
) -> None:
    folder = save_model(tmp_path / "model", CONFIGS[name])
    source = find_source(str(folder), tmp_path, manager)
    written(source, "f32", tmp_path / "model.gguf")
    assert gap(tmp_path / "model.gguf", AutoModelForCausalLM.from_pretrained(folder)) < CLOSE["f32"]


@pytest.mark.parametrize("quantization", CLOSE)
def test_a_runs_adapter_is_merged_and_rounded(
    quantization: str, source: Source, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.gguf"
    cost = written(source, quantization, file)
    assert (cost < 1e-5) == (quantization == "f32")
    assert cost < ROUNDED[quantization]
    assert gap(file, AutoModelForCausalLM.from_pretrained(run / "model")) < CLOSE[quantization]


def test_transformers_loads_the_file(source: Source, run: Path, tmp_path: Path) -> None:
    written(source, "f32", tmp_path / "small.gguf")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf")
    expected = logits(AutoModelForCausalLM.from_pretrained(run / "model"))
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_four_bits_is_written_on_what_they_hold(
    base: Path, run: Path, four_bits: Source, tmp_path: Path
) -> None:
    written(four_bits, "f32", tmp_path / "small.gguf")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf")
    expected = adapted_in_four_bits(base, run)
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-3)


def test_weights_that_do_not_fit_are_refused(
    base: Path, tmp_path: Path, manager: ModelManager
) -> None:
    folder = shutil.copytree(base, tmp_path / "large")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(folder)
    source = find_source(str(folder), tmp_path, manager)
    with pytest.raises(ExportError, match=r"up_proj\.weight has weights that f16 cannot hold"):
        written(source, "f16", tmp_path / "large.gguf")


def test_rotary_halves_become_neighbours() -> None:
    """Head 0 has the rows 0 to 3: its halves (0, 1) and (2, 3) rotate as (0, 2) and (1, 3)."""
    rows = np.arange(8)[:, None]
    assert interleave_rotary_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_small_rows_are_not_q8_0(tmp_path: Path, manager: ModelManager) -> None:
    """Q8_0 packs 32 weights of a row; rows of 40 are kept as f16."""
    config = small(LlamaConfig, hidden_size=40, num_attention_heads=5, num_key_value_heads=5)
    folder = save_model(tmp_path / "model", config)
    source = find_source(str(folder), tmp_path, manager)
    written(source, "q8_0", tmp_path / "model.gguf")
    assert gap(tmp_path / "model.gguf", AutoModelForCausalLM.from_pretrained(folder)) < 2e-2
