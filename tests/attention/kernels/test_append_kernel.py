"""Appending one entry per row."""

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
    c.slots[3] = c.slots[2]
    places = [0, 8, -1, -1]
    new = case(batch=4, per_group=1, dim=dim, capacity=3, device=device).query  # (B, G, 1, D)
    key, value = new, new + 1
    position = torch.tensor([100, 200, 300, 400], device=device)
    expected = {name: column.clone() for name, column in c.kv.columns.items()}
    for i, (slot, place) in enumerate(zip(c.slots.tolist(), places, strict=True)):
        if place >= 0:
            expected["keys"][slot, :, place] = key[i, :, 0]
            expected["values"][slot, :, place] = value[i, :, 0]
            expected["mass"][slot, :, place] = 0.0
            expected["positions"][slot, :, place] = position[i]
    append(
        c.kv,
        c.slots,
        torch.tensor(places, device=device),
        key,
        value,
        position,
        implementation=implementation,
    )
    for name, column in c.kv.columns.items():
        assert torch.equal(column, expected[name])
