"""The learned score: new weights, and the network in the form that kernels take."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu
from transformers import LlamaForCausalLM

from llamahome.attention import build_policy
from llamahome.attention.policies.learned import LearnedScorer
from llamahome.config import PolicyConfig
from tests.attention.sequences import DIM, kept_positions, one_layer, qkv
from tests.policies import built, policy_case


def test_new_weights_keep_what_window_keeps() -> None:
    new, window = (
        kept_positions(policy_case(name), *qkv(60), build=build_policy)
        for name in ("learned", "window")
    )
    assert all(torch.equal(a, b) for a, b in zip(new, window, strict=True))
    random = kept_positions(policy_case("learned"), *qkv(60))
    assert not torch.equal(new[-1], random[-1])


def test_the_network_of_the_kernels_computes_the_features(tiny_llama: LlamaForCausalLM) -> None:
    scorer = built(policy_case("learned"), tiny_llama).weights
    assert isinstance(scorer, LearnedScorer)
    x = torch.randn(1, 5, 2 * 16, generator=torch.Generator().manual_seed(2))
    network = scorer.network(1, (1,))
    rows = x[0, :, :16] @ network.keys[0].T + x[0, :, 16:] @ network.values[0].T  # (5, W + 1)
    hidden = silu(rows[:, :-1] + network.hidden_bias[0])
    expected = rows[:, -1] + hidden @ network.out[0] + network.bias[0]
    torch.testing.assert_close(scorer.of(x, 1, (1,))[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", [{}, {"rope_type": "yarn", "factor": 4.0}])
def test_a_key_is_turned_back_to_what_it_was(rope: dict[str, float | str]) -> None:
    config = one_layer().config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0, **rope}
    model = LlamaForCausalLM(config)
    scorer = build_policy(PolicyConfig(name="learned"), model).weights
    assert isinstance(scorer, LearnedScorer)
    key = torch.randn(1, 2, 40, DIM)
    cos, sin = model.model.rotary_emb(key, torch.arange(40)[None])
    first, second = key.chunk(2, dim=-1)
    rotated = key * cos + torch.cat([-second, first], dim=-1) * sin
    torch.testing.assert_close(scorer.unrotated(rotated, torch.arange(40)), key, atol=1e-5, rtol=0)
