"""The walk's C++ kernels against torch in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.attention import Documents, HybridAttention
from llamahome.attention.gradients import walk_with_gradients
from llamahome.attention.native_walk import has_kernels
from llamahome.attention.walk import Walk, Walked
from llamahome.config import PolicyConfig
from llamahome.native import load_native
from tests.policies import CASES, built, policy_case

ISAS = ["auto", "portable"]
if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
    ISAS.append("avx2")
# Batch, query heads, KV heads, head_dim, tokens, interval, budget: blocks of all sizes, and rests.
SHAPES = [
    (2, 6, 2, 16, 61, 4, 12),
    (1, 9, 3, 64, 200, 16, 60),
    (1, 4, 1, 80, 257, 64, 100),
    (1, 3, 3, 128, 130, 32, 64),
    (1, 8, 1, 32, 700, 300, 320),
]


def inputs(batch: int, heads: int, groups: int, dim: int, length: int) -> list[Tensor]:
    """Return query, key, value and a gradient of the output, in float64, tokens before heads."""
    torch.manual_seed(length)
    sizes = [(batch, length, count, dim) for count in (heads, groups, groups, heads)]
    return [1.5 * torch.randn(size, dtype=torch.float64).transpose(1, 2) for size in sizes]


def model(heads: int, groups: int, dim: int) -> LlamaForCausalLM:
    """Return a model of two layers."""
    config = LlamaConfig(
        hidden_size=heads * dim,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=8,
    )
    return LlamaForCausalLM(config)


def differentiated(attention: HybridAttention, tensors: list[Tensor]) -> list[Tensor]:
    """Return the output, and the gradients of query, key, value and the policy's weights."""
    *leaves, grad = (x.detach().clone() for x in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights = attention.policy.weights
    # The discount by age has no gradient, and the bias of a head moves nothing.
    own = [] if weights is None else [weights.hidden, weights.linear, weights.out]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, [*leaves, *own], grad)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for own, other in zip(found, expected, strict=True):
        size = float(other.abs().max())
        torch.testing.assert_close(own.double(), other.double(), rtol=0, atol=1e-5 * max(size, 1))


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_float64(case: str) -> None:
    """Rolling positions, which the kernels leave to torch, included."""
    shape = model(6, 2, 16)
    tensors = inputs(2, 6, 2, 16, 61)
    attention = HybridAttention(built(policy_case(case), shape), shape)
    expected = differentiated(attention, tensors)
    assert has_kernels(tensors[0].float())
    assert not has_kernels(tensors[0])
    assert_close(differentiated(attention, [x.float() for x in tensors]), expected)


@pytest.mark.parametrize("group", ["sum", "max"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_instruction_set(shape: tuple[int, ...], group: str) -> None:
    batch, heads, groups, dim, length, interval, budget = shape
    tensors = inputs(batch, heads, groups, dim, length)
    config = PolicyConfig(budget=budget, recent=interval, interval=interval, group=group)
    walk = Walk(
        policy=built(config),
        layer_idx=0,
        heads=tuple(range(groups)),
        scaling=dim**-0.5,
        rotary=None,
    )
    query, key, value = leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    out = walk_with_gradients(query, key, value, walk)
    expected = torch.autograd.grad(out, leaves, tensors[3])
    walked = walk.run(query, key, value)
    for isa in ISAS:
        found, masses = _by(isa, walk, walked, tensors)
        assert_close(found, [out.detach(), *expected])
        for chunk, kept, mass in zip(walk.chunks(length), walked.kept, masses, strict=True):
            assert_close([mass], [_mass(walk, tensors, chunk, kept)])


def _by(
    isa: str, walk: Walk, walked: Walked, tensors: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return output and gradients, and the mass of each chunk, by one instruction set."""
    load_native()
    assert walk.policy.mass is not None
    query, key, value, grad = (x.float() for x in tensors)
    weights = torch.tensor(walk.policy.mass.weights)
    out, lse, masses = torch.empty_like(query), query.new_empty(query.shape[:3]), []
    for chunk, kept in zip(walk.chunks(query.shape[2]), walked.kept, strict=True):
        own = (kept.contiguous(), chunk.start, chunk.stop)
        counted = weights[: chunk.stop - chunk.start]
        most = walk.policy.mass.group == "max"
        masses.append(
            torch.ops.llamahome.walk_chunk(
                query, key, value, *own, out, lse, counted, most, walk.scaling, isa
            )
        )
    counts = [kept.shape[2] for kept in walked.kept]
    places = torch.cat(walked.kept, dim=2).int()
    *gradients, _ = torch.ops.llamahome.walk_backward(
        grad, query, key, value, out, lse, places, counts, walk.policy.interval, False,
        walk.scaling, isa,
    )  # fmt: skip
    return [out, *gradients], masses


def _mass(walk: Walk, tensors: list[Tensor], chunk: slice, kept: Tensor) -> Tensor:
    query, key, value, _ = tensors
    own = torch.arange(chunk.start, chunk.stop).expand(*kept.shape[:2], -1)
    index = torch.cat([kept, own], dim=2).unsqueeze(-1).expand(-1, -1, -1, key.shape[3])
    held = key.gather(2, index), value.gather(2, index)
    mass = walk.attend_chunk(query[:, :, chunk], *held, with_mass=True)[1]
    assert mass is not None
    return mass


@pytest.mark.parametrize("name", ["h2o", "learned"])
def test_threads_change_no_bit(name: str) -> None:
    shape = model(6, 2, 16)
    config = PolicyConfig(name=name, budget=40, recent=16, interval=16)
    attention = HybridAttention(built(config, shape), shape)
    tensors = [x.float() for x in inputs(1, 6, 2, 16, 150)]
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outcomes.append(differentiated(attention, tensors))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def test_a_surrogate_that_is_not_0_goes_back_through_torch() -> None:
    """Its probabilities on the way back are others than those going forward."""
    shape = model(6, 2, 16)
    plain = built(policy_case("learned"), shape)
    assert plain.scorer is not None
    scorer = replace(plain.scorer, surrogate=lambda features, ages: 3 * features)
    attention = HybridAttention(replace(plain, scorer=scorer), shape)
    tensors = inputs(1, 6, 2, 16, 61)
    expected = differentiated(attention, tensors)
    assert_close(differentiated(attention, [x.float() for x in tensors]), expected)


def test_bfloat16_is_as_near_as_its_rounding() -> None:
    shape = model(6, 2, 16)
    attention = HybridAttention(built(policy_case("window"), shape), shape)
    tensors = [x.bfloat16() for x in inputs(1, 6, 2, 16, 61)]
    found = differentiated(attention, tensors)
    assert {x.dtype for x in found} == {torch.bfloat16}
    for own, exact in zip(
        found, differentiated(attention, [x.double() for x in tensors]), strict=True
    ):
        assert float((own.double() - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("case", ["h2o_pattern", "learned"])
def test_a_packed_document_is_as_if_alone(case: str) -> None:
    """Heads of unequal budgets and policies with weights, in documents of one row."""
    shape = model(6, 2, 16)
    attention = HybridAttention(built(policy_case(case), shape), shape)
    tensors = [x.float() for x in inputs(1, 6, 2, 16, 61)]
    numbers = torch.tensor([[0] * 33 + [1] * 28])
    packed = differentiated(attention.over(Documents.of(numbers)), tensors)
    apart = [
        differentiated(attention, [x[:, :, part] for x in tensors])
        for part in (slice(0, 33), slice(33, 61))
    ]
    for own, first, second in zip(packed[:4], apart[0][:4], apart[1][:4], strict=True):
        torch.testing.assert_close(own, torch.cat([first, second], dim=2), rtol=1e-5, atol=1e-5)
    for own, first, second in zip(packed[4:], apart[0][4:], apart[1][4:], strict=True):
        torch.testing.assert_close(own, first + second, rtol=1e-4, atol=1e-5)
