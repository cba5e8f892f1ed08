"""The backward pass of the chunk walk, which attends with many chunks at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamahome.attention import build_policy
from llamahome.attention.gradients import walk_with_gradients
from llamahome.attention.walk import Walk
from llamahome.config import PolicyConfig
from tests.attention.sequences import qkv


def _walk(budget: int) -> Walk:
    config = PolicyConfig(name="h2o", budget=budget, sink=2, recent=6, interval=4)
    return Walk(policy=build_policy(config), layer_idx=0, heads=(0, 1), scaling=0.3, rotary=None)


def _gradients(tensors: list[Tensor], walk: Walk, grad: Tensor) -> tuple[Tensor, ...]:
    query, key, value = (x.clone().requires_grad_() for x in tensors)
    out = walk_with_gradients(query, key, value, walk)
    return torch.autograd.grad(out, [query, key, value], grad)


@pytest.mark.parametrize("length", [32, 35, 61])
def test_a_sequence_has_the_gradient_that_it_has_alone(length: int) -> None:
    """Chunks of one sequence and sequences of one batch are never mixed up."""
    both = [torch.cat([x, -x.flip(2)]) for x in qkv(length)]
    grad = torch.randn(2, 6, length, 8, dtype=torch.float64)
    together = _gradients(both, _walk(12), grad)
    for row in range(2):
        alone = _gradients([x[row : row + 1] for x in both], _walk(12), grad[row : row + 1])
        for own, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(own[row : row + 1], expected)


def test_chunks_before_a_late_one_do_not_change_its_gradient() -> None:
    """A loss on the last chunk alone reaches what was kept for it, and nothing else."""
    query, key, value = (x.requires_grad_() for x in qkv(61))
    walk = _walk(12)
    kept = walk.run(query.detach(), key.detach(), value.detach()).kept
    walk_with_gradients(query, key, value, walk)[:, :, 60:].sum().backward()
    assert value.grad is not None
    for head in range(2):
        reached = value.grad[0, head].abs().sum(dim=-1).nonzero().flatten().tolist()
        assert reached == [*kept[-1][0, head].tolist(), 60]
