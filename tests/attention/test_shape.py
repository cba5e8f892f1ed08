from __future__ import annotations

from transformers import GPTNeoXConfig, LlamaConfig

from llamahome.attention.shape import ModelShape


def test_a_config_without_kv_heads_or_head_size_has_one_kv_head_per_query_head() -> None:
    config = GPTNeoXConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=32)
    expected = ModelShape(num_layers=3, num_heads=4, num_kv_heads=4, head_dim=8)
    assert ModelShape.of_config(config) == expected


def test_an_explicit_head_size_overrides_the_hidden_size() -> None:
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, hidden_size=32, head_dim=16)
    shape = ModelShape.of_config(config)
    assert (shape.num_kv_heads, shape.head_dim) == (2, 16)
