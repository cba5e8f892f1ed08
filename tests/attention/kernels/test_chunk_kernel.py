"""Chunk attention against `attend` over what each slot holds, slot by slot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamahome.attention import attend
from llamahome.attention.kernels import Implementation, chunk_attend
from tests.attention.kernels.cases import TOLERANCE, Case, case, close, spoil

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


def _expected(
    c: Case, slot: int, i: int, held: int, tokens: int, weights: Tensor, group: str
) -> tuple[Tensor, Tensor]:
    places = torch.arange(held + tokens, device=weights.device)
    out, received = attend(
        c.query[i : i + 1, :, :tokens].float(),
        c.kv.keys[slot : slot + 1, :, : held + tokens].float(),
        c.kv.values[slot : slot + 1, :, : held + tokens].float(),
        (places <= places[held:, None])[None],
        c.scaling,
        counted=weights[i : i + 1, :tokens],
        group=group,
    )
    assert received is not None
    return out[0], received[0]


def _check(
    c: Case,
    held: list[int],
    tokens: list[int],
    implementation: Implementation,
    group: str = "sum",
) -> None:
    device, queries = c.query.device, c.query.shape[2]
    before, count = torch.tensor(held, device=device), torch.tensor(tokens, device=device)
    real = torch.arange(queries, device=device) < count[:, None]
    weights = torch.linspace(0.1, 1.0, queries, device=device) * real
    spoil(c, before + count)
    mass, tolerance = c.kv.mass.clone(), TOLERANCE[c.query.dtype]
    out = chunk_attend(
        c.query,
        c.kv,
        c.slots,
        before,
        count,
        c.scaling,
        weights=weights,
        group=group,
        implementation=implementation,
    )
    assert out.dtype == c.query.dtype
    assert bool(out.isfinite().all())
    for i, slot in enumerate(c.slots.tolist()):
        expected, received = _expected(c, slot, i, held[i], tokens[i], weights, group)
        close(out[i, :, : tokens[i]], expected, tolerance)
        mass[slot, :, : held[i] + tokens[i]] += received
    close(c.kv.mass, mass, tolerance)


@BOTH
@pytest.mark.parametrize("per_group", [1, 3, 8])
@pytest.mark.parametrize("group", ["sum", "max"])
def test_groups_of_query_heads(
    device: str, implementation: Implementation, per_group: int, group: str
) -> None:
    c = case(per_group=per_group, queries=16, device=device)
    _check(c, [64, 20], [16, 5], implementation, group)


@BOTH
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_head_dims(device: str, implementation: Implementation, dim: int) -> None:
    _check(case(dim=dim, queries=7, device=device), [0, 73], [7, 7], implementation)


@BOTH
@pytest.mark.parametrize(("queries", "capacity"), [(1, 1), (40, 40), (70, 131)])
def test_chunks_of_any_length(
    device: str, implementation: Implementation, queries: int, capacity: int
) -> None:
    c = case(groups=1, queries=queries, capacity=capacity, device=device)
    _check(c, [0, capacity - queries], [queries, queries], implementation)


@pytest.mark.parametrize("dim", [80, 128])
def test_half_precision(device: str, dim: int) -> None:
    c = case(dtype=torch.float16, dim=dim, queries=16, device=device)
    _check(c, [64, 3], [16, 11], "triton", "max")


@BOTH
def test_without_mass(device: str, implementation: Implementation) -> None:
    c = case(queries=5, device=device)
    before = c.kv.mass.clone()
    held, tokens = torch.tensor([0, 30], device=device), torch.tensor([5, 5], device=device)
    out = chunk_attend(
        c.query, c.kv, c.slots, held, tokens, c.scaling, implementation=implementation
    )
    weights = torch.ones(2, 5, device=device)
    for i, slot in enumerate(c.slots.tolist()):
        close(out[i], _expected(c, slot, i, int(held[i]), 5, weights, "sum")[0])
    assert torch.equal(c.kv.mass, before)
