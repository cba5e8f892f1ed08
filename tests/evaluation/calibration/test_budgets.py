"""Budgets from measured error: the error against plain loops, the allocation against all others."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.attention import build_policy
from llamahome.attention.reference import Head, reference
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation.calibration.budgets import allocate, floors_of, head_errors, ladder
from llamahome.evaluation.calibration.recording import record
from tests.attention.sequences import token_ids

RUNGS = (8, 16, 32, 48)
H2O = PolicyConfig(budget=12, sink=2, recent=6, interval=4, decay=None)


def _mass(head: Head, position: int) -> float:
    return sum(sum(probs) for probs in head.received[position])


def test_the_error_is_half_the_mean_square_of_gradient_times_change(
    tiny_llama: LlamaForCausalLM,
) -> None:
    layers = record(tiny_llama, token_ids(40)[0], seed=1)
    errors = head_errors(layers, build_policy(H2O), 12)
    assert errors.shape == (2, 2)
    for layer, own in zip(layers, errors, strict=True):
        out, _ = reference(layer.query[0], layer.key[0], layer.value[0], H2O, _mass)
        assert layer.grad is not None
        change = (layer.grad[0] * (out - layer.out[0])).sum(dim=-1)
        for group in range(2):
            both = change[2 * group] + change[2 * group + 1]
            assert float(own[group]) == pytest.approx(float((both**2).mean() / 2), rel=1e-4)


def test_a_budget_of_the_whole_text_has_no_error(tiny_llama: LlamaForCausalLM) -> None:
    layers = record(tiny_llama, token_ids(40)[0], seed=1)
    assert head_errors(layers, build_policy(H2O), 40).max() < 1e-9


def _none(layers: int, heads: int) -> torch.Tensor:
    """Return floors that are none."""
    return torch.full((layers, heads), RUNGS[0])


def _convex(heads: int, seed: int) -> torch.Tensor:
    """Return errors (heads, 1, K) that fall, each step less per entry than the one before."""
    draw = torch.Generator().manual_seed(seed)
    slopes = torch.rand(heads, len(RUNGS) - 1, generator=draw).sort(dim=1, descending=True).values
    falls = slopes * torch.tensor([b - a for a, b in itertools.pairwise(RUNGS)])
    return torch.cat([torch.zeros(heads, 1), -falls.cumsum(dim=1)], dim=1).unsqueeze(1) + 100


@pytest.mark.parametrize("seed", range(4))
def test_what_is_spent_could_not_be_spent_better(seed: int) -> None:
    errors = _convex(4, seed)
    held = [layer[0] for layer in allocate(errors, RUNGS, 20, _none(4, 1))]
    assert sum(held) == 80
    # One head has what no whole step could use; with what the others have, none does better.
    rungs = [max(rung for rung in RUNGS if rung <= budget) for budget in held]
    error = sum(float(errors[i, 0, RUNGS.index(rung)]) for i, rung in enumerate(rungs))
    spent = sum(rungs)
    best = min(
        sum(float(errors[i, 0, k]) for i, k in enumerate(choice))
        for choice in itertools.product(range(len(RUNGS)), repeat=4)
        if sum(RUNGS[k] for k in choice) <= spent
    )
    assert error == pytest.approx(best)


def test_a_step_that_pays_only_together_with_the_next_is_taken() -> None:
    """One head's error falls at the last rung alone; a step-by-step climb would never start."""
    errors = torch.tensor([[[9.0, 9.0, 9.0, 1.0]], [[2.0, 1.9, 1.8, 1.7]]])
    assert allocate(errors, RUNGS, 28, _none(2, 1)) == [[48], [8]]


def test_heads_that_look_things_up_start_higher() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.3, 0.2]])
    floors = floors_of(scores, RUNGS, heads=2, entries=20)
    assert floors.tolist() == [[8, 32], [32, 8]]
    budgets = allocate(torch.zeros(2, 2, 4), RUNGS, 21, floors)
    assert sum(map(sum, budgets)) == 84
    assert budgets[0][1] >= 32
    assert budgets[1][0] >= 32
    with pytest.raises(ConfigError, match=r"between 20, of which .* fewer --lookup-heads"):
        allocate(torch.zeros(2, 2, 4), RUNGS, 19, floors)


@pytest.mark.parametrize("total", [7, 49])
def test_a_total_that_cannot_be_is_refused(total: int) -> None:
    with pytest.raises(ConfigError, match=f"--budget: {total} entries a head .* between 8, .* 48"):
        allocate(torch.rand(2, 2, 4), RUNGS, total, _none(2, 2))


def test_rungs_are_few_round_and_hold_what_is_protected() -> None:
    rungs = ladder(PolicyConfig(recent=64), 2048)
    assert rungs == sorted(set(rungs))
    assert all(rung % 16 == 0 for rung in rungs)
    assert 69 <= rungs[0] < 100
    assert 1024 < rungs[-1] < 2048
    assert len(rungs) <= 10
    assert ladder(PolicyConfig(recent=128), 512)[0] >= 133
