"""Activation checkpointing that walks once: the same bits for less work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import Documents, HybridAttention, walk_once
from llamahome.attention.walk import Walk, Walked
from tests.attention.sequences import token_ids
from tests.policies import built, policy_case

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

LENGTH = 43


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Walk]:
    """Every walk that is run."""
    found: list[Walk] = []
    run = Walk.run

    def counted(walk: Walk, *args: Tensor) -> Walked:
        found.append(walk)
        return run(walk, *args)

    monkeypatch.setattr(Walk, "run", counted)
    return found


def _gradients(model: LlamaForCausalLM, attention: HybridAttention, times: int = 1) -> list[Tensor]:
    """Return the gradient of every weight, the loss taken back so many times."""
    ids = token_ids(LENGTH)
    model.zero_grad()
    logits = model(
        ids, position_ids=attention.position_ids(ids), use_cache=False, hybrid=attention
    ).logits
    for time in range(times):
        logits.square().sum().backward(retain_graph=time + 1 < times)
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("case", ["h2o_decay", "h2o_pattern", "learned", "h2o_rolling"])
def test_the_gradients_are_those_without_checkpointing(
    tiny_llama: LlamaForCausalLM, walks: list[Walk], case: str, double: bool
) -> None:
    model = tiny_llama.double() if double else tiny_llama
    HybridAttention.attach(model.train())
    attention = HybridAttention(built(policy_case(case), model), model)
    numbers = torch.tensor([[0] * 20 + [1] * (LENGTH - 20)])
    for own in (attention, attention.over(Documents.of(numbers))):
        model.gradient_checkpointing_disable()
        walks.clear()
        plain = _gradients(model, own)
        count = len(walks)
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": walk_once})
        walks.clear()
        checkpointed = _gradients(model, own)
        assert len(walks) == count > 0
        for one, other in zip(plain, checkpointed, strict=True):
            assert torch.equal(one, other)


def test_a_graph_may_be_walked_back_twice(tiny_llama: LlamaForCausalLM) -> None:
    HybridAttention.attach(tiny_llama.train())
    attention = HybridAttention(built(policy_case("h2o"), tiny_llama), tiny_llama)
    tiny_llama.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": walk_once})
    once, twice = _gradients(tiny_llama, attention), _gradients(tiny_llama, attention, times=2)
    for one, both in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * one, both)
