"""The matrix: every policy against the float64 loop reference and the claims common to all."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import Entries, HybridAttention, Rotary
from llamahome.attention.policies import BUILDERS
from llamahome.attention.reference import Head, Score, reference
from llamahome.config import PolicyConfig
from llamahome.config.policy import POLICIES
from tests.attention.sequences import DIM, LENGTH, kept_positions, one_layer, qkv, token_ids
from tests.policies import CASES, built, policy_case

EVICTING = [case for case in CASES if case != "h2o_pyramid"]  # one layer makes no pyramid


def sums(head: Head, position: int) -> list[float]:
    """Return the group's probability from each query that saw the position, oldest first."""
    return [sum(by_head) for by_head in head.received[position]]


def decayed(values: list[float], time: float) -> float:
    return sum(v * math.exp(-age / time) for age, v in enumerate(reversed(values)))


def score_of(case: str, config: PolicyConfig, key: Tensor, value: Tensor) -> Score:
    """Return the score of a case's paper, from all probabilities that a key has received."""

    def ones(head: Head, s: int) -> list[float]:
        return [1.0] * len(head.received[s])

    def pooled(head: Head, s: int) -> float:
        window = min(config.window, config.interval)
        at = head.held.index(s)
        near = head.held[max(0, at - 3) : at + 4]
        return sum(sum(sums(head, p)[-window:]) for p in near) / len(near)

    def keydiff(head: Head, s: int) -> float:
        keys = {p: key[head.index, p] / key[head.index, p].norm() for p in head.held}
        mean = sum(keys.values()) / len(keys)
        return -float(keys[s] @ mean / mean.norm())

    def random(head: Head, s: int) -> float:
        entries = Entries(
            keys=key[None, :1, :1],
            values=value[None, :1, :1],
            mass=torch.zeros(1, 1, 1),
            positions=torch.tensor([[[s]]]),
            layer_idx=0,
            heads=(head.index,),
        )
        return float(BUILDERS["random"](config, None).score(entries))

    def learned(head: Head, s: int) -> float:
        weights = _weights(config, head.index)
        turn = -s * 10_000 ** (-torch.arange(0, DIM, 2) / DIM)
        first, second = key[head.index, s].chunk(2)
        unrotated = torch.complex(first, second) * torch.polar(torch.ones(DIM // 2), turn)
        if config.positions == "rolling":
            unrotated = torch.complex(first, second)
        x = torch.cat([unrotated.real, unrotated.imag, value[head.index, s]])
        hidden = weights["hidden"] @ x + weights["hidden_bias"]
        feature = weights["linear"] @ x + weights["out"] @ (hidden * hidden.sigmoid())
        age = len(head.received[s])
        return float(feature + weights["bias"] - weights["discount"] * math.log(age))

    scores: dict[str, Callable[[Head, int], float]] = {
        "h2o_decay": lambda head, s: decayed(sums(head, s), 7),
        "h2o_normalize": lambda head, s: sum(sums(head, s)) / len(sums(head, s)),
        "h2o_decay_normalize": lambda head, s: (
            decayed(sums(head, s), 7) / decayed(ones(head, s), 7)
        ),
        "h2o_max": lambda head, s: sum(max(by_head) for by_head in head.received[s]),
        "value_norm": lambda head, s: sum(sums(head, s)) * float(value[head.index, s].abs().sum()),
        "snapkv": pooled,
        "snapkv_whole_chunk": pooled,
        "tova": lambda head, s: sums(head, s)[-1],
        "window": lambda head, s: float(s),
        "keydiff": keydiff,
        "random": random,
        "learned": learned,
        "learned_rolling": learned,
        "learned_pattern": learned,
    }
    return scores.get(case, lambda head, s: sum(sums(head, s)))


def _weights(config: PolicyConfig, head: int) -> dict[str, Tensor]:
    """Return the weights of one head of the policy that `built` makes, in float64."""
    weights = built(config, one_layer()).weights
    assert weights is not None
    return {name: weight[0, head].double() for name, weight in weights.state_dict().items()}


def rotate_at(rotary: Rotary, x: Tensor, place: int) -> Tensor:
    return rotary(x[None, None, None], torch.tensor([[place]]))[0, 0, 0]


@pytest.mark.parametrize("case", EVICTING)
@pytest.mark.parametrize("length", [LENGTH, 27])
@pytest.mark.parametrize("interval", [1, 4, 5])
def test_attention_equals_the_loop_reference(case: str, length: int, interval: int) -> None:
    config = policy_case(case, interval=interval)
    config.pattern = {name: b for name, b in config.pattern.items() if name.startswith("L0")}
    query, key, value = qkv(length)
    model = one_layer().double()
    rotary = Rotary(model) if config.positions == "rolling" else None
    out = HybridAttention(built(config, model), model)(query, key, value)
    expected, _ = reference(
        query[0],
        key[0],
        value[0],
        config,
        score_of(case, config, key[0], value[0]),
        *([] if rotary is None else [lambda x, place: rotate_at(rotary, x, place)]),
    )
    # The model computes cosines in float32.
    tolerance = 1e-9 if rotary is None else 1e-5
    torch.testing.assert_close(out[0], expected, rtol=tolerance, atol=tolerance)


ONE_BUDGET = [case for case in EVICTING if "pattern" not in case and "rolling" not in case]


@pytest.mark.parametrize("case", ONE_BUDGET)
def test_a_policy_keeps_the_same_entries_as_the_reference(case: str) -> None:
    config = policy_case(case)
    query, key, value = qkv()
    score = score_of(case, config, key[0], value[0])
    _, expected = reference(query[0], key[0], value[0], config, score)
    for chunk, positions in enumerate(kept_positions(config, query, key, value)):
        assert [head.tolist() for head in positions] == [head[chunk] for head in expected]


@pytest.mark.parametrize("case", ONE_BUDGET)
def test_sinks_and_recent_entries_always_stay(case: str) -> None:
    config = policy_case(case)
    for chunk, positions in enumerate(kept_positions(config, *qkv(60)), start=1):
        length = chunk * config.interval
        always = {0, 1, *range(max(0, length - config.recent), length)}
        for head in positions.tolist():
            assert always <= set(head)
            assert len(head) == min(length, 12)


def test_each_policy_keeps_different_entries() -> None:
    query, key, value = qkv(60)
    query = 3 * query  # sharp attention, which tells the policies apart
    kept = {case: str(kept_positions(policy_case(case), query, key, value)) for case in ONE_BUDGET}
    assert len(set(kept.values())) == len(ONE_BUDGET)


def test_every_policy_is_in_the_matrix() -> None:
    names = {policy_case(case).name for case in CASES}
    assert names == set(BUILDERS) == set(POLICIES) - {"full"}


def test_random_depends_on_seed_layer_and_head() -> None:
    def last(seed: int, layer_idx: int) -> Tensor:
        config = policy_case("random", seed=seed)
        return kept_positions(config, *qkv(60), layer_idx=layer_idx)[-1]

    assert torch.equal(last(0, 0), last(0, 0))
    assert not torch.equal(last(0, 0), last(1, 0))
    assert not torch.equal(last(0, 0), last(0, 1))
    assert last(0, 0)[0].tolist() != last(0, 0)[1].tolist()


@pytest.mark.parametrize("case", EVICTING)
@pytest.mark.parametrize("length", [40, 64, 77])
def test_a_budget_equal_to_the_length_is_dense_attention(
    tiny_llama: LlamaForCausalLM, case: str, length: int
) -> None:
    ids = token_ids(length, rows=2)
    tiny_llama.set_attn_implementation("eager")
    expected = tiny_llama(ids).logits
    config = policy_case(case, budget=length)
    config.pattern = dict.fromkeys(config.pattern, length)
    attention = HybridAttention(built(config, tiny_llama), tiny_llama)
    attention.attach(tiny_llama)
    logits = tiny_llama(
        ids, position_ids=attention.position_ids(ids), use_cache=False, hybrid=attention
    ).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", EVICTING)
def test_gradients_are_exact(case: str) -> None:
    config = policy_case(case, budget=6, sink=1, recent=4, interval=3)
    config.pattern = {"L0H1": 7} if config.pattern else {}
    model = one_layer().double()
    attention = HybridAttention(built(config, model), model)
    tensors = [x[:, :, :14].clone().requires_grad_() for x in qkv()]
    # The model computes cosines in float32, so rolling positions are inexact.
    assert torch.autograd.gradcheck(attention, tensors, atol=1e-4)
