"""Small sequences and models, and what a policy keeps of them. Axes: G KV heads, K kept entries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.attention import Policy
from llamahome.attention.walk import Walk
from llamahome.config import PolicyConfig
from tests.policies import built

LENGTH, DIM = 32, 8


def token_ids(length: int, rows: int = 1) -> Tensor:
    """Return ids (rows, length), the same in every call."""
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def qkv(
    length: int = LENGTH, *, groups: int = 2, per_group: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a query, key and value of one sequence, in float64."""
    torch.manual_seed(length)
    query = 2 * torch.randn(1, groups * per_group, length, DIM, dtype=torch.float64)
    key = 2 * torch.randn(1, groups, length, DIM, dtype=torch.float64)
    return query, key, torch.randn(1, groups, length, DIM, dtype=torch.float64)


def one_layer() -> LlamaForCausalLM:
    """Return a model with the heads of `qkv`."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=6 * DIM,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=8,
        )
    )


def kept_positions(
    config: PolicyConfig,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layer_idx: int = 0,
    build: Callable[[PolicyConfig, LlamaForCausalLM], Policy] = built,
) -> list[Tensor]:
    """Return the positions (G, K) kept before each chunk but the first; one budget only."""
    walk = Walk(
        policy=build(config, one_layer()),
        layer_idx=layer_idx,
        heads=tuple(range(key.shape[1])),
        scaling=DIM**-0.5,
        rotary=None,
    )
    features = walk.features(key, value)
    return [positions[0] for positions in walk.run(query, key, value, features).kept[1:]]
