"""Hybrid attention against transformers' own attention and the float64 loop reference."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.attention.reference import reference
from llamahome.config import PolicyConfig
from tests.attention.sequences import kept_positions, qkv, token_ids


def _config(name: str, **numbers: int) -> PolicyConfig:
    numbers = {"budget": 12, "sink": 2, "recent": 6, "interval": 4, **numbers}
    return PolicyConfig(name=name, **numbers)


def test_all_query_heads_of_a_group_count_for_its_mass() -> None:
    """Two heads of one group attend to different old keys; a budget for both keeps both."""
    length = 16
    query, key, value = qkv(length, groups=1, per_group=2)
    query.zero_()
    query[0, 0, :, 0] = 4.0
    query[0, 1, :, 1] = 4.0
    key.zero_()
    key[0, 0, 3, 0] = 4.0
    key[0, 0, 5, 1] = 4.0
    config = _config("h2o", budget=5, sink=0, recent=2, interval=2)
    kept = kept_positions(config, query, key, value)
    assert {3, 5} <= set(kept[-1][0].tolist())
    query[0, 1] = query[0, 0]
    kept = kept_positions(config, query, key, value)
    assert 5 not in kept[-1][0].tolist()


def test_the_chunk_walk_without_eviction_is_dense_attention() -> None:
    """The walk itself runs here, not the shortcut for sequences without eviction."""
    query, key, value = qkv(30)
    walk = HybridAttention(build_policy(_config("h2o", budget=28)))
    dense = HybridAttention(build_policy(PolicyConfig.dense()))
    assert walk.policy.evicts(33)
    assert not walk.policy.evicts(29)
    out = walk(*(torch.cat([x, x[:, :, :5]], dim=2) for x in (query, key, value)))
    torch.testing.assert_close(out[:, :, :30], dense(query, key, value))


def test_an_evicted_key_gets_no_gradient_from_later_queries() -> None:
    config = _config("window", budget=8, sink=0, recent=8, interval=4)
    query, key, value = (x.requires_grad_() for x in qkv(24))
    HybridAttention(build_policy(config))(query, key, value)[:, :, 20:].sum().backward()
    assert value.grad is not None
    assert value.grad[:, :, :12].abs().sum() == 0
    assert value.grad[:, :, 12:].abs().sum() > 0


def test_autocast_gives_nearly_the_gradients_of_float32(tiny_llama: LlamaForCausalLM) -> None:
    """Autocast projects queries and keys in 16 bits, and the model rotates them in float32."""
    HybridAttention.attach(tiny_llama)
    attention = HybridAttention(build_policy(_config("h2o")), tiny_llama)
    weight = tiny_llama.model.layers[0].self_attn.k_proj.weight
    gradients = []
    for enabled in (False, True):
        tiny_llama.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = tiny_llama(token_ids(40), use_cache=False, hybrid=attention).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), token_ids(40)[0, 1:]).backward()
        assert weight.grad is not None
        gradients.append(weight.grad.flatten().clone())
    plain, mixed = gradients
    assert float(torch.cosine_similarity(plain, mixed, dim=0)) > 0.95


def test_right_padding_does_not_change_the_real_tokens_logits(
    tiny_llama: LlamaForCausalLM,
) -> None:
    attention = HybridAttention(build_policy(_config("h2o")))
    attention.attach(tiny_llama)
    ids = token_ids(42)
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
        tiny_llama(token_ids(20), attention_mask=mask, use_cache=False, hybrid=attention)


def test_a_forward_without_hybrid_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama)
    with pytest.raises(ValueError, match="hybrid=HybridAttention"):
        tiny_llama(token_ids(8), use_cache=False)


def test_attention_dropout_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama)
    for layer in tiny_llama.model.layers:
        layer.self_attn.attention_dropout = 0.1
    attention = HybridAttention(build_policy(_config("h2o")))
    with pytest.raises(ValueError, match="attention_dropout=0"):
        tiny_llama.train()(token_ids(8), use_cache=False, hybrid=attention)


def test_a_carried_policy_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="read from its checkpoint"):
        build_policy(PolicyConfig(name="carried", budget=None))


def test_the_reference_without_eviction_is_plain_softmax_attention() -> None:
    query, key, value = qkv(20)
    config = PolicyConfig.dense()
    out, _ = reference(query[0], key[0], value[0], config, lambda head, s: 0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected[0])
