"""Compaction against `Entries.take`."""

from __future__ import annotations

import pytest
import torch

from llamahome.attention import Entries
from llamahome.attention.kernels import Implementation, compact
from tests.attention.kernels.cases import case

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


@BOTH
@pytest.mark.parametrize(
    ("dim", "capacity", "kept"), [(64, 80, 1), (80, 90, 80), (96, 33, 33), (128, 200, 150)]
)
def test_what_stays_moves_to_the_front(
    device: str, implementation: Implementation, dim: int, capacity: int, kept: int
) -> None:
    c = case(dim=dim, capacity=capacity, device=device)
    generator = torch.Generator().manual_seed(kept)
    drawn = torch.rand(2, 2, capacity, generator=generator).argsort(dim=-1)[..., :kept]
    index = drawn.sort(dim=-1).values.to(device)
    expected = Entries(
        keys=c.keys[c.rows],
        values=c.values[c.rows],
        mass=c.mass[c.rows],
        positions=c.positions[c.rows],
        layer_idx=0,
        heads=(0, 1),
    ).take(index)
    others = [row for row in range(c.keys.shape[0]) if row not in c.rows.tolist()]
    before = [t[others].clone() for t in (c.keys, c.values, c.mass, c.positions)]
    compact(
        c.keys,
        c.values,
        c.mass,
        c.positions,
        c.rows,
        index,
        carry=0.75,
        implementation=implementation,
    )
    assert torch.equal(c.keys[c.rows, :, :kept], expected.keys)
    assert torch.equal(c.values[c.rows, :, :kept], expected.values)
    assert torch.equal(c.mass[c.rows, :, :kept], expected.mass * 0.75)
    assert torch.equal(c.positions[c.rows, :, :kept], expected.positions)
    for left, same in zip((c.keys, c.values, c.mass, c.positions), before, strict=True):
        assert torch.equal(left[others], same)
