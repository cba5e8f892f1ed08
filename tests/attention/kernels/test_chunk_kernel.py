"""Chunk attention against `attend` over what each slot holds, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamahome.attention import attend
from llamahome.attention.kernels import Implementation, chunk_attend
from tests.attention.kernels.cases import TOLERANCE, Case, case, close, spoil

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


def _expected(
    c: Case, row: int, i: int, held: int, tokens: int, weights: Tensor, group: str
) -> tuple[Tensor, Tensor]:
    places = torch.arange(held + tokens, device=weights.device)
    out, received = attend(
        c.query[i : i + 1, :, :tokens].float(),
        c.keys[row : row + 1, :, : held + tokens].float(),
        c.values[row : row + 1, :, : held + tokens].float(),
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
    for stored in (c.keys, c.values):
        spoil(stored, c.rows, before + count)
    mass, tolerance = c.mass.clone(), TOLERANCE[c.query.dtype]
    out = chunk_attend(
        c.query,
        c.keys,
        c.values,
        c.rows,
        before,
        count,
        c.scaling,
        mass=c.mass,
        weights=weights,
        group=group,
        implementation=implementation,
    )
    assert out.dtype == c.query.dtype
    assert bool(out.isfinite().all())
    for i, row in enumerate(c.rows.tolist()):
        expected, received = _expected(c, row, i, held[i], tokens[i], weights, group)
        close(out[i, :, : tokens[i]], expected, tolerance)
        mass[row, :, : held[i] + tokens[i]] += received
    close(c.mass, mass, tolerance)


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
    before = c.mass.clone()
    held, tokens = torch.tensor([0, 30], device=device), torch.tensor([5, 5], device=device)
    out = chunk_attend(
        c.query, c.keys, c.values, c.rows, held, tokens, c.scaling, implementation=implementation
    )
    weights = torch.ones(2, 5, device=device)
    for i, row in enumerate(c.rows.tolist()):
        close(out[i], _expected(c, row, i, int(held[i]), 5, weights, "sum")[0])
    assert torch.equal(c.mass, before)
