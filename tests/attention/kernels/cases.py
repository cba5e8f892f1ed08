"""Slots filled at random, some of what lies behind their entries not even finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Kernels add in another order than torch; 16-bit outputs are compared with exact arithmetic.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(kw_only=True)
class Case:
    """Slots (more than rows) and queries (B, G * R, T, D)."""

    query: Tensor
    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor
    rows: Tensor
    scaling: float


def case(
    *,
    batch: int = 2,
    groups: int = 2,
    per_group: int = 3,
    queries: int = 1,
    dim: int = 64,
    capacity: int = 80,
    dtype: torch.dtype = torch.float32,
    device: str,
) -> Case:
    generator = torch.Generator().manual_seed(capacity + dim + per_group)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    slots = batch + 2
    # As models hand queries over: (B, T, H, D), transposed.
    query = normal(batch, queries, groups * per_group, dim).transpose(1, 2)
    return Case(
        query=query,
        keys=normal(slots, groups, capacity, dim),
        values=normal(slots, groups, capacity, dim),
        mass=torch.rand(slots, groups, capacity, generator=generator).to(device),
        positions=torch.arange(capacity, device=device).expand(slots, groups, -1).clone(),
        rows=torch.randperm(slots, generator=generator)[:batch].to(device),
        scaling=dim**-0.5,
    )


def spoil(stored: Tensor, rows: Tensor, counts: Tensor) -> None:
    """Put NaN behind the first `counts` entries of each row's slot."""
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        stored[row, :, count:] = float("nan")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
