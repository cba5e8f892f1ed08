"""Perplexity from the engine's log probabilities, against the model's own."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from benchmarks.engine.quality import mean_nll, perplexity_ratio
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine


def _engine(model: LlamaForCausalLM) -> Engine:
    dense = PolicyConfig.dense()
    return Engine(model, build_policy(dense), EngineConfig(slots=2, max_length=64, runner="torch"))


def test_nll_equals_the_models_cross_entropy(tiny_llama: LlamaForCausalLM) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (3, 40), generator=generator)
    engine = _engine(tiny_llama)
    found = mean_nll(engine, ids.tolist())
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        logits = tiny_llama(ids, use_cache=False).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(found, float(expected), rtol=1e-4, atol=1e-4)


def test_an_engine_over_itself_is_1(tiny_llama: LlamaForCausalLM) -> None:
    windows = [[9, 8, 7, 6, 5], [20, 30, 40, 50, 60]]
    engine = _engine(tiny_llama)
    assert abs(perplexity_ratio(engine, engine, windows) - 1) < 1e-5
