"""Decode attention against `attend` over what each slot holds, slot by slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llamahome.attention import attend
from llamahome.attention.kernels import Implementation, decode_attend
from tests.attention.kernels.cases import TOLERANCE, Case, case, close, spoil

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


def _expected(c: Case, counts: Tensor, weights: Tensor, group: str, mass: Tensor) -> Tensor:
    outputs = []
    for i, (slot, count) in enumerate(zip(c.slots.tolist(), counts.tolist(), strict=True)):
        out, received = attend(
            c.query[i : i + 1].float(),
            c.kv.keys[slot : slot + 1, :, :count].float(),
            c.kv.values[slot : slot + 1, :, :count].float(),
            torch.ones(1, 1, count, dtype=torch.bool, device=mass.device),
            c.scaling,
            counted=weights[i : i + 1, None],
            group=group,
        )
        assert received is not None
        mass[slot, :, :count] += received[0]
        outputs.append(out)
    return torch.cat(outputs)


def _check(c: Case, counts: list[int], implementation: Implementation, group: str = "sum") -> None:
    device = c.query.device
    seen = torch.tensor(counts, device=device)
    weights = torch.linspace(0.3, 1.0, len(counts), device=device)
    spoil(c, seen)
    mass = c.kv.mass.clone()
    expected = _expected(c, seen, weights, group, mass)
    out = decode_attend(
        c.query,
        c.kv,
        c.slots,
        seen,
        c.scaling,
        weights=weights,
        group=group,
        implementation=implementation,
    )
    assert out.dtype == c.query.dtype
    close(out, expected, TOLERANCE[c.query.dtype])
    close(c.kv.mass, mass, TOLERANCE[c.query.dtype])


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
    c.kv = replace(c.kv, keys=c.kv.keys.half(), values=c.kv.values.half())
    _check(c, [80, 17], implementation)


@BOTH
def test_without_mass(device: str, implementation: Implementation) -> None:
    c = case(device=device)
    counts = torch.tensor([80, 9], device=device)
    before = c.kv.mass.clone()
    expected = _expected(c, counts, counts.float(), "sum", before.clone())
    out = decode_attend(c.query, c.kv, c.slots, counts, c.scaling, implementation=implementation)
    close(out, expected)
    assert torch.equal(c.kv.mass, before)


@BOTH
def test_rows_of_no_weight_leave_a_shared_slot_alone(
    device: str, implementation: Implementation
) -> None:
    c = case(batch=3, device=device)
    c.slots[1:] = (c.slots[0] + 1) % c.kv.keys.shape[0]
    before = c.kv.mass.clone()
    decode_attend(
        c.query,
        c.kv,
        c.slots,
        torch.tensor([50, 1, 1], device=device),
        c.scaling,
        weights=torch.tensor([1.0, 0.0, 0.0], device=device),
        implementation=implementation,
    )
    slot = int(c.slots[0])
    assert not torch.equal(c.kv.mass[slot], before[slot])
    c.kv.mass[slot] = before[slot]
    assert torch.equal(c.kv.mass, before)


def test_what_does_not_fit_is_refused(device: str) -> None:
    c = case(device=device)
    counts = torch.tensor([5, 5], device=device)
    weights = torch.ones(2, device=device)

    def attend(implementation: Implementation, **changes: Any) -> None:
        given = {"query": c.query, "kv": c.kv, "weights": weights, **changes}
        decode_attend(
            slots=c.slots, counts=counts, scaling=c.scaling, implementation=implementation, **given
        )

    with pytest.raises(ValueError, match="5 query heads"):
        attend("torch", query=c.query[:, :5])
    with pytest.raises(ValueError, match="must be sum or max"):
        attend("torch", group="mean")
    with pytest.raises(ValueError, match=r"\(4, 2, 79\)"):
        attend("torch", kv=replace(c.kv, mass=c.kv.mass[..., 1:]))
    with pytest.raises(ValueError, match="count in float32"):
        attend("triton", kv=replace(c.kv, mass=c.kv.mass.double()))
    with pytest.raises(ValueError, match="needs it contiguous"):
        attend("triton", weights=weights[:1].expand(2))
    with pytest.raises(ValueError, match="the last must be 1"):
        attend("triton", kv=replace(c.kv, keys=c.kv.keys.mT.contiguous().mT))
