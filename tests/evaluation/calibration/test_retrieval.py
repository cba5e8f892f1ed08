"""The heads that retrieve, and the total of a pattern."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation.calibration.retrieval import (
    FIRST,
    LAST,
    PLANTS,
    probes,
    propose,
    retrieval_scores,
)
from tests.evaluation.cases import TEXT


def test_answers_are_given_once_and_repeated_at_the_end(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    kinds = set()
    for probe in probes(byte_tokenizer, TEXT, length=1000, count=4, seed=3):
        assert len(probe.ids) == 1000
        text = str(byte_tokenizer.decode(probe.ids))
        asked = text.index("Question:")
        assert len(probe.lookups) >= 3
        for lookup in probe.lookups:
            answer = str(byte_tokenizer.decode(probe.ids[lookup.given]))
            repeated = [int(i) + 1 for i in range(lookup.answering.start, lookup.answering.stop)]
            assert byte_tokenizer.decode(probe.ids[repeated]) == answer
            assert lookup.given.stop <= asked < lookup.answering.start
            kinds.add(_kind(answer.strip()))
        assert max(lookup.answering.stop for lookup in probe.lookups) == 999
    assert kinds == {"number", "plant", "name"}


def _kind(answer: str) -> str:
    if answer.isdigit() and len(answer) == 6:
        return "number"
    if answer in PLANTS:
        return "plant"
    first, last = answer.split()
    assert first in FIRST
    assert last in LAST
    return "name"


def test_a_short_probe_has_one_fact(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for probe in probes(byte_tokenizer, TEXT, length=160, count=6, seed=0):
        assert len(probe.lookups) == 1
        assert len(probe.ids) == 160


def test_scores_are_the_models_own_attention(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = probes(byte_tokenizer, TEXT, length=400, count=2, seed=0)
    tiny_llama.set_attn_implementation("eager")
    expected = []
    for probe in asked:
        with torch.no_grad():
            attentions = tiny_llama(probe.ids[None], output_attentions=True).attentions
        layers = torch.stack([a[0] for a in attentions])  # (L, H, N, N)
        received = torch.stack(
            [layers[:, :, own.answering, own.given].sum(-1).mean(-1) for own in probe.lookups]
        )
        expected.append(received.view(-1, 2, 2, 2).amax(-1).mean(0))
    seen: list[int] = []
    scores = retrieval_scores(tiny_llama, asked, on_probe=lambda: seen.append(1))
    torch.testing.assert_close(scores, torch.stack(expected).mean(0))
    assert len(seen) == 2


def test_a_head_that_looks_at_what_it_repeats_comes_first(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Make queries and keys of one head a digit's code, so that equal digits attract."""
    attention = tiny_llama.model.layers[1].self_attn
    for parameter in (*tiny_llama.model.layers[0].parameters(), *attention.parameters()):
        parameter.data *= 0.01
    # Digits alone have something in four dimensions, the same amount; those rotate least, or
    # distance would count too.
    embedding = tiny_llama.model.embed_tokens.weight.data
    embedding[:, :4] = 0
    for digit in range(10):
        code = torch.tensor([1.0 if digit >> bit & 1 else -1.0 for bit in range(4)])
        embedding[byte_tokenizer.convert_tokens_to_ids(str(digit)), :4] = code
    same = torch.zeros(16, 64)
    same[[6, 14, 7, 15], range(4)] = 10.0
    attention.q_proj.weight.data[2 * 16 : 3 * 16] = same  # query head 2, of KV head 1
    attention.k_proj.weight.data[1 * 16 : 2 * 16] = same
    asked = probes(byte_tokenizer, TEXT, length=1000, count=3, seed=0)
    scores = retrieval_scores(tiny_llama, asked)
    assert divmod(int(scores.argmax()), 2) == (1, 1)


def test_a_length_that_a_probe_does_not_fit_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ConfigError, match="--context=64: a probe needs"):
        probes(byte_tokenizer, TEXT, length=64, count=1, seed=0)


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
