"""A policy with weights: its features, its gradient, its digest, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import Entries, HybridAttention, Policy, build_policy
from llamahome.attention.gradients import walk_with_gradients
from llamahome.attention.scorer import Scorer
from llamahome.attention.walk import Walk
from llamahome.config import ConfigError, PolicyConfig
from tests.attention.sequences import one_layer, qkv

CONFIG = {"budget": 6, "sink": 1, "recent": 4, "interval": 3}


def _linear(seed: int = 0) -> tuple[Policy, Tensor]:
    """Build the linear policy with random weights, and return both."""
    model = one_layer().double()
    policy = build_policy(PolicyConfig(name="linear", **CONFIG), model)
    assert policy.weights is not None
    policy.weights.double()
    (weight,) = policy.weights.parameters()
    torch.manual_seed(seed)
    torch.nn.init.normal_(weight)
    return policy, weight


def _walk(policy: Policy, heads: tuple[int, ...] = (0, 1)) -> Walk:
    return Walk(policy=policy, layer_idx=0, heads=heads, scaling=0.3, rotary=None)


def _plain(query: Tensor, key: Tensor, value: Tensor, walk: Walk) -> Tensor:
    """Compute the walk's output with plain autograd, on the positions that the walk kept."""
    features = walk.features(key, value)
    assert features is not None
    kept = walk.run(query, key, value, features).kept
    outputs = []
    for chunk, positions in zip(walk.chunks(query.shape[2]), kept, strict=True):
        logits = torch.full((6, chunk.stop - chunk.start, chunk.stop), float("-inf")).double()
        for head in range(6):
            g = head // 3
            seen = [*positions[0, g].tolist(), *range(chunk.start, chunk.stop)]
            for i, t in enumerate(range(chunk.start, chunk.stop)):
                for s in (s for s in seen if s <= t):
                    bias = features[0, g, s] - features[0, g, s].detach()
                    own = bias if s < chunk.start else 0.0
                    logits[head, i, s] = query[0, head, t] @ key[0, g, s] * 0.3 + own
        grouped = value[0, :, : chunk.stop].repeat_interleave(3, dim=0)
        outputs.append(logits.softmax(dim=-1) @ grouped)
    return torch.cat(outputs, dim=1)[None]


@pytest.mark.usefixtures("linear_policy")
def test_the_gradient_of_the_weights_equals_plain_autograds() -> None:
    policy, weight = _linear()
    walk = _walk(policy)
    torch.manual_seed(3)
    grad = torch.randn(1, 6, 14, 8, dtype=torch.float64)
    outcomes = []
    for compute in (walk_with_gradients, _plain):
        query, key, value = (x[:, :, :14].clone().requires_grad_() for x in qkv())
        out = compute(query, key, value, walk)
        gradients = torch.autograd.grad(out, [query, key, value, weight], grad)
        outcomes.append([out.detach(), *gradients])
    assert outcomes[0][-1].abs().min() > 0
    for own, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("linear_policy")
def test_weights_decide_which_entries_stay() -> None:
    query, key, value = qkv()

    def kept(seed: int) -> str:
        walk = _walk(_linear(seed)[0])
        return str(walk.run(query, key, value, walk.features(key, value)).kept)

    assert kept(0) != kept(1)


@pytest.mark.usefixtures("linear_policy")
def test_heads_of_unequal_budget_share_one_scorer() -> None:
    model = one_layer()
    config = PolicyConfig(name="linear", **CONFIG, pattern={"L0H1": 9})
    policy = build_policy(config, model)
    first, second = policy.planes(0, 1, 2)
    assert first.policy.scorer is second.policy.scorer is policy.scorer
    assert policy.within(8).scorer is policy.scorer
    assert policy.weights is not None
    (weight,) = policy.weights.parameters()
    torch.nn.init.normal_(weight)
    query, key, value = (x[:, :, :14].float() for x in qkv())
    HybridAttention(policy, model)(query, key, value).sum().backward()
    assert weight.grad is not None
    assert (weight.grad.abs().sum(dim=-1) > 0).all()


@pytest.mark.usefixtures("linear_policy")
def test_the_digest_changes_with_every_weight_and_number() -> None:
    policy, weight = _linear()
    before = policy.digest()
    assert before == _linear()[0].digest()
    with torch.no_grad():
        weight[0, 0, 0] += 1e-12
    assert policy.digest() != before
    assert policy.within(8).digest() != policy.digest()


@pytest.mark.usefixtures("linear_policy")
def test_weights_are_loaded_or_refused(tiny_llama: LlamaForCausalLM) -> None:
    config = PolicyConfig(name="linear", **CONFIG)
    policy = build_policy(config, tiny_llama)
    assert policy.weights is not None
    assert policy.has_features
    weights = {"weight": torch.randn(2, 2, 32)}
    loaded = build_policy(config, tiny_llama, weights)
    assert loaded.digest() != policy.digest()
    for wrong in ({}, {"weight": torch.zeros(2, 2, 31)}, {**weights, "more": torch.zeros(1)}):
        with pytest.raises(ConfigError, match=r"policy\.name='linear': its weights do not fit"):
            build_policy(config, tiny_llama, wrong)
    with pytest.raises(ConfigError, match="needs the model"):
        build_policy(config)


def test_a_policy_without_weights_refuses_them() -> None:
    policy = build_policy(PolicyConfig())
    assert policy.weights is None
    assert not policy.has_features
    with pytest.raises(ConfigError, match=r"policy\.name='h2o' has no weights"):
        build_policy(PolicyConfig(), weights={"weight": torch.zeros(1)})


def test_a_score_that_is_nan_ranks_last() -> None:
    scores = torch.tensor([[[0.0, float("nan"), 2.0, float("-inf"), 1.0, 3.0, 0.0, 0.0]]])
    policy = Policy(
        config=PolicyConfig(budget=6, sink=0, recent=2, interval=2),
        scorer=Scorer(score=lambda entries: scores),
    )
    size = (1, 1, 8)
    entries = Entries(
        keys=torch.zeros(*size, 4),
        values=torch.zeros(*size, 4),
        mass=torch.zeros(size),
        positions=torch.arange(8).expand(size),
        layer_idx=0,
        heads=(0,),
    )
    assert policy.select(entries, 8).tolist() == [[[0, 2, 4, 5, 6, 7]]]
