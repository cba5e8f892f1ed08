"""Compaction against `Entries.take`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llamahome.attention import Entries
from llamahome.attention.kernels import Implementation, compact
from tests.attention.kernels.cases import case

BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


@BOTH
@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize(
    ("dim", "capacity", "kept"), [(64, 80, 1), (80, 90, 80), (96, 33, 33), (128, 200, 150)]
)
def test_what_stays_moves_to_the_front(
    device: str,
    implementation: Implementation,
    dim: int,
    capacity: int,
    kept: int,
    with_features: bool,
) -> None:
    c = case(dim=dim, capacity=capacity, device=device)
    generator = torch.Generator().manual_seed(kept)
    drawn = torch.rand(2, 2, capacity, generator=generator).argsort(dim=-1)[..., :kept]
    index = drawn.sort(dim=-1).values.to(device)
    features = torch.rand(4, 2, capacity, generator=generator).to(device)
    c.kv = replace(c.kv, features=features if with_features else None)
    before = {name: column.clone() for name, column in c.kv.columns.items()}
    expected = Entries(
        **{name: column[c.slots] for name, column in before.items()}, layer_idx=0, heads=(0, 1)
    ).take(index)
    compact(c.kv, c.slots, index, implementation=implementation)
    others = [slot for slot in range(4) if slot not in c.slots.tolist()]
    for name, column in c.kv.columns.items():
        assert torch.equal(column[c.slots, :, :kept], getattr(expected, name)), name
        assert torch.equal(column[others], before[name][others]), name
