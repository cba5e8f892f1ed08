"""Perplexity and KL through a runner against transformers' own loss and logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.evaluation import perplexity
from tests.evaluation.cases import EXACT, FULL, random_ids

EVICTING = {"budget": 24, "sink": 4, "recent": 16, "interval": 8}


def test_dense_perplexity_is_that_of_transformers(tiny_llama: LlamaForCausalLM) -> None:
    [ids] = random_ids(620)
    windows = torch.tensor(ids[:600]).view(2, 300)
    with torch.no_grad():
        losses = [float(tiny_llama(w[None], labels=w[None]).loss) for w in windows]
    [result] = perplexity(tiny_llama, ids, [FULL], EXACT, window=300)
    assert result.tokens == 2 * 299
    assert result.nll == pytest.approx(losses, rel=1e-5)
    assert math.log(result.perplexity) == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert result.kl == pytest.approx([0, 0], abs=1e-6)
    assert result.kv.final == result.kv.dense


@pytest.mark.parametrize("name", ["h2o", "snapkv", "window", "random"])
def test_nll_and_kl_are_those_of_the_training_forward(
    tiny_llama: LlamaForCausalLM, name: str
) -> None:
    policy = PolicyConfig(name=name, **EVICTING)
    [ids] = random_ids(300)
    text = torch.tensor([ids])
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        dense = tiny_llama(text).logits[0, :-1].double().log_softmax(-1)
    _, result = perplexity(tiny_llama, ids, [FULL, build_policy(policy)], EXACT, window=300)
    HybridAttention.attach(tiny_llama)
    attention = HybridAttention(build_policy(policy))
    with torch.no_grad():
        logits = tiny_llama(text, use_cache=False, hybrid=attention).logits[0, :-1]
    own = logits.double().log_softmax(-1)
    nll = -own.gather(1, text[0, 1:, None]).mean()
    kl = (dense.exp() * (dense - own)).sum(-1).mean()
    assert result.nll == pytest.approx([float(nll)], rel=1e-4)
    assert result.kl == pytest.approx([float(kl)], rel=1e-3)
    assert result.kl[0] > 0.01
    # 299 tokens are read: 37 chunks and 3 more.
    assert result.kv.final == result.kv.dense // 299 * (24 + 3)
    assert result.kv.peak < result.kv.dense


def test_blocks_are_sums_over_64_tokens(tiny_llama: LlamaForCausalLM) -> None:
    [ids] = random_ids(2 * 400)
    [result] = perplexity(tiny_llama, ids, [FULL], EXACT, window=400)
    for start, blocks, mean in zip((0, 400), result.blocks, result.nll, strict=True):
        text = torch.tensor(ids[start : start + 400])
        with torch.no_grad():
            logits = tiny_llama(text[None]).logits[0, :-1].double()
        nll = F.cross_entropy(logits, text[1:], reduction="none")  # 399 predicted tokens
        assert blocks == pytest.approx([float(part.sum()) for part in nll.split(64)], rel=1e-5)
        assert len(blocks) == 7
        assert mean == pytest.approx(float(nll.mean()), rel=1e-5)


def test_by_default_nll_is_that_of_the_engine_that_serves(tiny_llama: LlamaForCausalLM) -> None:
    policy = PolicyConfig(**EVICTING)
    [ids] = random_ids(200)
    engine = Engine(tiny_llama, build_policy(policy), EngineConfig(slots=1, max_length=200))
    engine.submit("text", ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
    served: list[float] = []
    while engine.has_work:
        for delta in engine.step():
            served += [own for own, _ in delta.prompt_logprobs if own is not None]
    [measured] = perplexity(tiny_llama, ids, [build_policy(policy)], EngineConfig(), window=200)
    [exact] = perplexity(tiny_llama, ids, [build_policy(policy)], EXACT, window=200)
    assert measured.nll == pytest.approx([-sum(served) / 199], rel=1e-5)
    assert measured.nll != pytest.approx(exact.nll, rel=1e-5)


def test_every_window_is_reported(tiny_llama: LlamaForCausalLM) -> None:
    seen: list[int] = []
    [ids] = random_ids(35)
    perplexity(tiny_llama, ids, [FULL], EXACT, window=10, on_window=lambda: seen.append(1))
    assert len(seen) == 3


def test_a_text_shorter_than_a_window_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    [ids] = random_ids(9)
    with pytest.raises(ValueError, match="a window of 10 does not fit"):
        perplexity(tiny_llama, ids, [FULL], EXACT, window=10)
