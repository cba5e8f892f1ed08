"""Hybrid attention against transformers' own attention and the float64 loop reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.attention.reference import reference
from llamahome.attention.walk import Walk
from llamahome.config import PolicyConfig


def _config(name: str, **numbers: int) -> PolicyConfig:
    numbers = {"budget": 12, "sink": 2, "recent": 6, "interval": 4, **numbers}
    return PolicyConfig(name=name, **numbers)


def _qkv(length: int, *, groups: int = 2, per_group: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(length)
    heads = groups * per_group
    query = 2 * torch.randn(1, heads, length, 8, dtype=torch.float64)
    key = 2 * torch.randn(1, groups, length, 8, dtype=torch.float64)
    return query, key, torch.randn(1, groups, length, 8, dtype=torch.float64)


def _ids(length: int, rows: int = 1) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def _walk(config: PolicyConfig, query: Tensor, key: Tensor, value: Tensor, layer_idx: int = 0):
    """The output, and the positions that each chunk but the first found."""
    walk = Walk(
        policy=build_policy(config),
        layer_idx=layer_idx,
        heads=tuple(range(key.shape[1])),
        scaling=query.shape[-1] ** -0.5,
        rotary=None,
    )
    out, kept = walk.run(query, key, value)
    return out, [positions[0] for positions in kept[1:]]


def test_all_query_heads_of_a_group_vote() -> None:
    """Two heads of one group look at different old keys; a budget for both keeps both."""
    length = 16
    query, key, value = _qkv(length, groups=1, per_group=2)
    query.zero_()
    query[0, 0, :, 0] = 4.0
    query[0, 1, :, 1] = 4.0
    key.zero_()
    key[0, 0, 3, 0] = 4.0
    key[0, 0, 5, 1] = 4.0
    config = _config("h2o", budget=5, sink=0, recent=2, interval=2)
    _, kept = _walk(config, query, key, value)
    assert {3, 5} <= set(kept[-1][0].tolist())
    query[0, 1] = query[0, 0]
    _, kept = _walk(config, query, key, value)
    assert 5 not in kept[-1][0].tolist()


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
@pytest.mark.parametrize("length", [40, 64, 77])
def test_a_budget_of_the_length_is_dense_attention(
    tiny_llama: LlamaForCausalLM, name: str, length: int
) -> None:
    ids = _ids(length, rows=2)
    tiny_llama.set_attn_implementation("eager")
    expected = tiny_llama(ids).logits
    attention = HybridAttention(build_policy(_config(name, budget=length)))
    attention.attach(tiny_llama)
    logits = tiny_llama(ids, use_cache=False, hybrid=attention).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_the_chunk_walk_without_eviction_is_dense_attention() -> None:
    """The walk itself, not the shortcut for sequences that lose nothing."""
    query, key, value = _qkv(30)
    walk = HybridAttention(build_policy(_config("h2o", budget=28)))
    dense = HybridAttention(build_policy(PolicyConfig(name="full", budget=None)))
    assert walk.policy.evicts(33)
    assert not walk.policy.evicts(29)
    out = walk(*(torch.cat([x, x[:, :, :5]], dim=2) for x in (query, key, value)))
    torch.testing.assert_close(out[:, :, :30], dense(query, key, value))


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
def test_gradients_are_exact(name: str) -> None:
    attention = HybridAttention(build_policy(_config(name, budget=6, sink=1, recent=4, interval=3)))
    torch.manual_seed(0)
    query = torch.randn(1, 4, 14, 3, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 2, 14, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 2, 14, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (query, key, value))


def test_an_evicted_key_gets_no_gradient_from_later_queries() -> None:
    config = _config("window", budget=8, sink=0, recent=8, interval=4)
    query, key, value = (x.requires_grad_() for x in _qkv(24))
    HybridAttention(build_policy(config))(query, key, value)[:, :, 20:].sum().backward()
    assert value.grad is not None
    assert value.grad[:, :, :12].abs().sum() == 0
    assert value.grad[:, :, 12:].abs().sum() > 0


def test_autocast_trains_what_float32_does(tiny_llama: LlamaForCausalLM) -> None:
    """A model rotates queries and keys in float32 that autocast has projected in 16 bits."""
    HybridAttention.attach(tiny_llama)
    attention = HybridAttention(build_policy(_config("h2o")), tiny_llama)
    weight = tiny_llama.model.layers[0].self_attn.k_proj.weight
    gradients = []
    for enabled in (False, True):
        tiny_llama.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = tiny_llama(_ids(40), use_cache=False, hybrid=attention).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), _ids(40)[0, 1:]).backward()
        assert weight.grad is not None
        gradients.append(weight.grad.flatten().clone())
    plain, mixed = gradients
    assert float(torch.cosine_similarity(plain, mixed, dim=0)) > 0.95


def test_right_padding_changes_nothing_real(tiny_llama: LlamaForCausalLM) -> None:
    attention = HybridAttention(build_policy(_config("h2o")))
    attention.attach(tiny_llama)
    ids = _ids(42)
    alone = tiny_llama(ids, use_cache=False, hybrid=attention).logits
    padded = torch.cat([ids, torch.zeros(1, 15, dtype=torch.int64)], dim=1)
    mask = (torch.arange(57) < 42).long()[None]
    out = tiny_llama(padded, attention_mask=mask, use_cache=False, hybrid=attention).logits
    torch.testing.assert_close(out[:, :42], alone, rtol=0, atol=1e-4)


def test_left_padding_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama)
    mask = torch.ones(1, 20, dtype=torch.int64)
    mask[0, :3] = 0
    attention = HybridAttention(build_policy(_config("h2o")))
    with pytest.raises(ValueError, match="padding on the right"):
        tiny_llama(_ids(20), attention_mask=mask, use_cache=False, hybrid=attention)


def test_a_forward_without_hybrid_says_so(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama)
    with pytest.raises(ValueError, match="hybrid=HybridAttention"):
        tiny_llama(_ids(8), use_cache=False)


def test_attention_dropout_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama)
    for layer in tiny_llama.model.layers:
        layer.self_attn.attention_dropout = 0.1
    attention = HybridAttention(build_policy(_config("h2o")))
    with pytest.raises(ValueError, match="attention_dropout=0"):
        tiny_llama.train()(_ids(8), use_cache=False, hybrid=attention)


def test_a_carried_policy_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="read from its checkpoint"):
        build_policy(PolicyConfig(name="carried", budget=None))


def test_the_reference_is_plain_softmax_attention_when_nothing_is_evicted() -> None:
    query, key, value = _qkv(20)
    config = PolicyConfig(name="full", budget=None)
    out, _ = reference(query[0], key[0], value[0], config, lambda head, s: 0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected[0])
