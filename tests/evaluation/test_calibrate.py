"""Heads that retrieve are found, and what a pattern holds adds up."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation.calibrate import (
    mass_curves,
    probes,
    propose,
    retrieval_scores,
    share_by_mass,
)

TEXT = "the quick brown fox jumps over the lazy dog " * 60


def test_a_code_is_told_once_and_repeated_at_the_end(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    for probe in probes(byte_tokenizer, TEXT, length=400, count=4, seed=3):
        assert len(probe.ids) == 400
        told = str(byte_tokenizer.decode(probe.ids[probe.told]))
        assert told.isdigit()
        assert len(told) == 6
        assert byte_tokenizer.decode(probe.ids).count(told) == 2
        repeated = [int(i) + 1 for i in range(probe.answering.start, probe.answering.stop)]
        assert byte_tokenizer.decode(probe.ids[repeated]) == told
        assert repeated[-1] == 399


def test_scores_are_the_models_own_attention(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = probes(byte_tokenizer, TEXT, length=200, count=2, seed=0)
    tiny_llama.set_attn_implementation("eager")
    expected = []
    for probe in asked:
        with torch.no_grad():
            attentions = tiny_llama(probe.ids[None], output_attentions=True).attentions
        layers = torch.stack([a[0] for a in attentions])  # (L, H, N, N)
        received = layers[:, :, probe.answering, probe.told].sum(-1).mean(-1)  # (L, H)
        expected.append(received.view(2, 2, 2).amax(-1))
    seen: list[int] = []
    scores = retrieval_scores(tiny_llama, asked, on_probe=lambda: seen.append(1))
    torch.testing.assert_close(scores, torch.stack(expected).mean(0))
    assert len(seen) == 2


def test_a_head_that_looks_at_what_it_repeats_comes_first(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Queries and keys of one head become the token's embedding, so equal tokens attract."""
    attention = tiny_llama.model.layers[1].self_attn
    for parameter in (*tiny_llama.model.layers[0].parameters(), *attention.parameters()):
        parameter.data *= 0.01
    same = torch.zeros(16, 64)
    same[torch.arange(16) // 2 + 8 * (torch.arange(16) % 2), torch.arange(16)] = 30.0
    attention.q_proj.weight.data[2 * 16 : 3 * 16] = same  # query head 2, of KV head 1
    attention.k_proj.weight.data[1 * 16 : 2 * 16] = same
    scores = retrieval_scores(tiny_llama, probes(byte_tokenizer, TEXT, length=120, count=3, seed=0))
    assert divmod(int(scores.argmax()), 2) == (1, 1)


@pytest.mark.parametrize("full_heads", [None, 0, 1, 3])
def test_a_pattern_takes_no_more_than_the_total(full_heads: int | None) -> None:
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    policy = propose(scores, PolicyConfig(), total=410, context=2048, full_heads=full_heads)
    budgets = [policy.budget_of(i, h, 6) for i in range(6) for h in range(4)]
    held = sum(2048 if b is None else b for b in budgets)
    assert 24 * 410 - 24 < held <= 24 * 410
    full = [i for i, b in enumerate(budgets) if b is None]
    assert len(full) == (3 if full_heads is None else full_heads)
    assert set(full) == set(scores.flatten().argsort(descending=True)[: len(full)].tolist())
    policy.check_model(6, 4)
    build_policy(policy)


@pytest.mark.parametrize("full_heads", [24, 5, -1])
def test_too_many_full_heads_are_refused(full_heads: int) -> None:
    with pytest.raises(ConfigError, match=rf"--full-heads={full_heads}: at 410 entries a head"):
        propose(torch.rand(6, 4), PolicyConfig(), total=410, context=2048, full_heads=full_heads)


def test_curves_are_the_models_own_attention_sorted(tiny_llama: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    windows = torch.randint(3, 260, (2, 40))
    tiny_llama.set_attn_implementation("eager")
    expected = torch.zeros(2, 2, 40)
    for ids in windows:
        with torch.no_grad():
            attentions = tiny_llama(ids[None], output_attentions=True).attentions
        for layer, attention in enumerate(attentions):
            mass = attention[0].view(2, 2, 40, 40).sum(1)  # over the query heads of a KV group
            for query in range(20, 40):
                free = mass[:, query].clone()
                free[:, :3] = 0
                free[:, query - 5 + 1 :] = 0
                expected[layer] += free.sort(dim=-1, descending=True).values / 20 / 2
    seen: list[int] = []
    curves = mass_curves(tiny_llama, windows, sink=3, recent=5, on_window=lambda: seen.append(1))
    torch.testing.assert_close(curves, expected)
    assert len(seen) == 2


def test_entries_go_to_the_heads_whose_mass_is_spread() -> None:
    narrow, wide = torch.zeros(512), torch.zeros(512)
    narrow[:8] = 0.1
    wide[:400] = 0.01
    policy = share_by_mass(torch.stack([narrow, wide])[None], PolicyConfig(), total=160)
    narrower, wider = policy.pattern["L0H0"], policy.pattern["L0H1"]
    assert narrower is not None
    assert wider is not None
    # Sinks and recent ones, and a fifth of the rest, in steps of 16.
    assert narrower == 4 + 40 + 16
    assert wider > 4 * narrower - 16
    assert (narrower + wider) / 2 <= policy.budget == 160  # type: ignore[operator]


@pytest.mark.parametrize("total", [24, 100, 300])
def test_shares_never_add_up_to_more_than_the_total(total: int) -> None:
    torch.manual_seed(0)
    curves = torch.rand(3, 2, 512).sort(dim=-1, descending=True).values
    policy = share_by_mass(curves, PolicyConfig(), total=total)
    budgets = [policy.budget_of(layer, head, 3) or 0 for layer in range(3) for head in range(2)]
    assert total - 16 <= sum(budgets) / 6 <= total
