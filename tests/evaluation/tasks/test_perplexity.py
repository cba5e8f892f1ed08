"""Perplexity and KL through the slots against transformers' own loss and logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.evaluation import perplexity

FULL = PolicyConfig(name="full", budget=None, interval=16)


def _ids(length: int) -> Tensor:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(0))


def test_dense_perplexity_is_that_of_transformers(tiny_llama: LlamaForCausalLM) -> None:
    ids = _ids(620)
    windows = ids[:600].view(2, 300)
    with torch.no_grad():
        losses = [float(tiny_llama(w[None], labels=w[None]).loss) for w in windows]
    [result] = perplexity(tiny_llama, ids, [FULL], window=300)
    assert result.tokens == 2 * 299
    assert result.nll == pytest.approx(losses, rel=1e-5)
    assert math.log(result.perplexity) == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert result.kl == pytest.approx([0, 0], abs=1e-6)
    assert result.kv.final == result.kv.dense


@pytest.mark.parametrize("name", ["h2o", "snapkv", "window", "random"])
def test_nll_and_kl_are_those_of_the_training_forward(
    tiny_llama: LlamaForCausalLM, name: str
) -> None:
    policy = PolicyConfig(name=name, budget=24, sink=4, recent=16, interval=8)
    ids = _ids(300)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        dense = tiny_llama(ids[None]).logits[0, :-1].double().log_softmax(-1)
    _, result = perplexity(tiny_llama, ids, [FULL, policy], window=300)
    attention = HybridAttention(build_policy(policy))
    with torch.no_grad():
        logits = tiny_llama(ids[None], use_cache=False, hybrid=attention).logits[0, :-1]
    own = logits.double().log_softmax(-1)
    nll = -own.gather(1, ids[1:, None]).mean()
    kl = (dense.exp() * (dense - own)).sum(-1).mean()
    assert result.nll == pytest.approx([float(nll)], rel=1e-4)
    assert result.kl == pytest.approx([float(kl)], rel=1e-3)
    assert result.kl[0] > 0.01
    # 299 tokens are read: 37 chunks and 3 more.
    assert result.kv.final == result.kv.dense // 299 * (24 + 3)
    assert result.kv.peak < result.kv.dense


def test_every_window_is_reported(tiny_llama: LlamaForCausalLM) -> None:
    seen: list[int] = []
    perplexity(tiny_llama, _ids(35), [FULL], window=10, on_window=lambda: seen.append(1))
    assert len(seen) == 3


def test_a_text_shorter_than_a_window_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="a window of 10 does not fit"):
        perplexity(tiny_llama, _ids(9), [FULL], window=10)
