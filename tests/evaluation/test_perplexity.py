"""Perplexity through the slots against transformers' own loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.evaluation import perplexity


def _ids(length: int) -> Tensor:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(0))


def test_dense_perplexity_is_that_of_transformers(tiny_llama: LlamaForCausalLM) -> None:
    ids = _ids(130)
    windows = ids[:120].view(2, 60)
    with torch.no_grad():
        loss = tiny_llama(windows, labels=windows).loss
    result = perplexity(
        tiny_llama, ids, PolicyConfig(name="full", budget=None, interval=16), window=60
    )
    assert result.tokens == 2 * 59
    assert math.log(result.perplexity) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
def test_evicting_perplexity_is_that_of_the_training_forward(
    tiny_llama: LlamaForCausalLM, name: str
) -> None:
    policy = PolicyConfig(name=name, budget=24, sink=4, recent=16, interval=8)
    ids = _ids(90)
    result = perplexity(tiny_llama, ids, policy, window=90)
    attention = HybridAttention(build_policy(policy))
    with torch.no_grad():
        logits = tiny_llama(ids[None], use_cache=False, hybrid=attention).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[1:])
    assert math.log(result.perplexity) == pytest.approx(float(expected), rel=1e-5)
    assert result.kv_bytes < result.kv_bytes_dense


def test_progress_is_told_window_by_window(tiny_llama: LlamaForCausalLM) -> None:
    seen: list[int] = []
    policy = PolicyConfig(name="full", budget=None)
    perplexity(tiny_llama, _ids(95), policy, window=30, on_window=lambda: seen.append(1))
    assert len(seen) == 3


def test_a_text_shorter_than_a_window_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="window of 30"):
        perplexity(tiny_llama, _ids(20), PolicyConfig(name="full", budget=None), window=30)
