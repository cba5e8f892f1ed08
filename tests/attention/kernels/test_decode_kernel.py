"""Decode attention against `attend` over what each slot holds, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamahome.attention import attend
from llamahome.attention.kernels import Implementation, decode_attend
from tests.attention.kernels.cases import TOLERANCE, Case, case, close, spoil

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


def _expected(c: Case, counts: Tensor, weights: Tensor, group: str, mass: Tensor) -> Tensor:
    outputs = []
    for i, (row, count) in enumerate(zip(c.rows.tolist(), counts.tolist(), strict=True)):
        out, received = attend(
            c.query[i : i + 1].float(),
            c.keys[row : row + 1, :, :count].float(),
            c.values[row : row + 1, :, :count].float(),
            torch.ones(1, 1, count, dtype=torch.bool, device=mass.device),
            c.scaling,
            counted=weights[i : i + 1, None],
            group=group,
        )
        assert received is not None
        mass[row, :, :count] += received[0]
        outputs.append(out)
    return torch.cat(outputs)


def _check(c: Case, counts: list[int], implementation: Implementation, group: str = "sum") -> None:
    device = c.query.device
    seen = torch.tensor(counts, device=device)
    weights = torch.linspace(0.3, 1.0, len(counts), device=device)
    for stored in (c.keys, c.values):
        spoil(stored, c.rows, seen)
    mass = c.mass.clone()
    expected = _expected(c, seen, weights, group, mass)
    out = decode_attend(
        c.query,
        c.keys,
        c.values,
        c.rows,
        seen,
        c.scaling,
        mass=c.mass,
        weights=weights,
        group=group,
        implementation=implementation,
    )
    assert out.dtype == c.query.dtype
    close(out, expected, TOLERANCE[c.query.dtype])
    close(c.mass, mass, TOLERANCE[c.query.dtype])


@BOTH
@pytest.mark.parametrize("per_group", [1, 3, 8])
@pytest.mark.parametrize("group", ["sum", "max"])
def test_groups_of_query_heads(
    device: str, implementation: Implementation, per_group: int, group: str
) -> None:
    _check(case(per_group=per_group, device=device), [80, 33], implementation, group)


@BOTH
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_head_dims(device: str, implementation: Implementation, dim: int) -> None:
    _check(case(dim=dim, device=device), [41, 80], implementation)


@BOTH
@pytest.mark.parametrize("capacity", [1, 31, 257])
def test_capacities_and_counts(device: str, implementation: Implementation, capacity: int) -> None:
    c = case(batch=4, capacity=capacity, groups=1, device=device)
    _check(c, [1, capacity, max(1, capacity // 2), max(1, capacity - 1)], implementation)


@pytest.mark.parametrize("dim", [80, 128])
def test_half_precision(device: str, dim: int) -> None:
    _check(case(dtype=torch.float16, dim=dim, device=device), [80, 65], "triton", "max")


@BOTH
def test_slots_in_fewer_bits_than_queries(device: str, implementation: Implementation) -> None:
    c = case(device=device)
    c.keys, c.values = c.keys.half(), c.values.half()
    _check(c, [80, 17], implementation)


@BOTH
def test_without_mass(device: str, implementation: Implementation) -> None:
    c = case(device=device)
    counts = torch.tensor([80, 9], device=device)
    before = c.mass.clone()
    expected = _expected(c, counts, counts.float(), "sum", before.clone())
    out = decode_attend(
        c.query, c.keys, c.values, c.rows, counts, c.scaling, implementation=implementation
    )
    close(out, expected)
    assert torch.equal(c.mass, before)


@BOTH
def test_rows_of_no_weight_leave_a_shared_slot_alone(
    device: str, implementation: Implementation
) -> None:
    c = case(batch=3, device=device)
    c.rows[1:] = (c.rows[0] + 1) % c.keys.shape[0]
    before = c.mass.clone()
    decode_attend(
        c.query,
        c.keys,
        c.values,
        c.rows,
        torch.tensor([50, 1, 1], device=device),
        c.scaling,
        mass=c.mass,
        weights=torch.tensor([1.0, 0.0, 0.0], device=device),
        implementation=implementation,
    )
    row = int(c.rows[0])
    assert not torch.equal(c.mass[row], before[row])
    c.mass[row] = before[row]
    assert torch.equal(c.mass, before)


def test_what_does_not_fit_is_refused(device: str) -> None:
    c = case(device=device)
    counts = torch.tensor([5, 5], device=device)
    arguments = (c.keys, c.values, c.rows, counts, c.scaling)
    with pytest.raises(ValueError, match="5 query heads"):
        decode_attend(c.query[:, :5], *arguments, implementation="torch")
    with pytest.raises(ValueError, match="weights=None"):
        decode_attend(c.query, *arguments, mass=c.mass, implementation="torch")
    weights = torch.ones(2, device=device)
    with pytest.raises(ValueError, match="must be sum or max"):
        decode_attend(
            c.query, *arguments, mass=c.mass, weights=weights, group="mean", implementation="torch"
        )
    with pytest.raises(ValueError, match=r"\(4, 2, 79\)"):
        decode_attend(
            c.query, *arguments, mass=c.mass[..., 1:], weights=weights, implementation="torch"
        )
    with pytest.raises(ValueError, match="count in float32"):
        decode_attend(
            c.query, *arguments, mass=c.mass.double(), weights=weights, implementation="triton"
        )
    with pytest.raises(ValueError, match="needs it contiguous"):
        decode_attend(
            c.query, *arguments, mass=c.mass, weights=weights[:1].expand(2), implementation="triton"
        )
    turned = c.keys.mT.contiguous().mT
    with pytest.raises(ValueError, match="the last must be 1"):
        decode_attend(c.query, turned, *arguments[1:], implementation="triton")
