"""Writing one entry per row."""

from __future__ import annotations

import pytest
import torch

from llamahome.attention.kernels import Implementation, append
from tests.attention.kernels.cases import case


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dim", [64, 80])
def test_each_row_writes_one_entry_or_none(
    device: str, implementation: Implementation, dim: int
) -> None:
    c = case(batch=4, capacity=9, dim=dim, dtype=torch.float16, device=device)
    c.rows[3] = c.rows[2]
    places = [0, 8, -1, -1]
    new = case(batch=4, per_group=1, dim=dim, capacity=3, device=device).query  # (B, G, 1, D)
    key, value = new, new + 1
    position = torch.tensor([100, 200, 300, 400], device=device)
    expected = [t.clone() for t in (c.keys, c.values, c.mass, c.positions)]
    for i, (row, place) in enumerate(zip(c.rows.tolist(), places, strict=True)):
        if place >= 0:
            expected[0][row, :, place] = key[i, :, 0]
            expected[1][row, :, place] = value[i, :, 0]
            expected[2][row, :, place] = 0.0
            expected[3][row, :, place] = position[i]
    append(
        c.keys,
        c.values,
        c.mass,
        c.positions,
        c.rows,
        torch.tensor(places, device=device),
        key,
        value,
        position,
        implementation=implementation,
    )
    for stored, same in zip((c.keys, c.values, c.mass, c.positions), expected, strict=True):
        assert torch.equal(stored, same)
