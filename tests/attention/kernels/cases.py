"""Slots filled at random, with NaN behind their entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamahome.attention.kernels import KVRecord

# Kernels add in another order than torch; 16-bit outputs are compared with exact arithmetic.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(kw_only=True)
class Case:
    """Slots, two more than rows, and queries (B, G * R, T, D)."""

    query: Tensor
    kv: KVRecord
    slots: Tensor
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
    # Transposed from (B, T, H, D), as a model has its queries.
    query = normal(batch, queries, groups * per_group, dim).transpose(1, 2)
    return Case(
        query=query,
        kv=KVRecord(
            keys=normal(slots, groups, capacity, dim),
            values=normal(slots, groups, capacity, dim),
            mass=torch.rand(slots, groups, capacity, generator=generator).to(device),
            positions=torch.arange(capacity, device=device).expand(slots, groups, -1).clone(),
        ),
        slots=torch.randperm(slots, generator=generator)[:batch].to(device),
        scaling=dim**-0.5,
    )


def spoil(case: Case, counts: Tensor) -> None:
    """Put NaN behind the first `counts` entries of each row's slot."""
    for slot, count in zip(case.slots.tolist(), counts.tolist(), strict=True):
        case.kv.keys[slot, :, count:] = float("nan")
        case.kv.values[slot, :, count:] = float("nan")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
