"""The C++ model's planes and step columns, without a forward pass. Axes: G KV heads, C capacity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llamahome.native import load_native
from llamahome.native import weights as pack
from llamahome.native.columns import AcceptColumns, RowColumns

SLOTS, HEADS, CAPACITY, DIM, TILE = 3, 2, 48, 16, 16
COUNT, BUDGET, SINK, RECENT = 45, 20, 2, 6
LENGTH = 3 * COUNT - 2  # positions are 0, 3, 6, ...


def _model(threads: int = 1) -> Any:
    load_native()
    model = torch.classes.llamahome.Model(32, 4, HEADS, DIM, 1e-5, 1.0, threads, "auto")
    layer = pack.linear(torch.zeros(32, 32), None, int8=False)
    model.add_layer(torch.ones(32), layer, layer, torch.ones(32), layer, layer)
    return model


def _columns(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the columns of a plane, with a different number for each entry."""
    size = (SLOTS, HEADS, CAPACITY)
    numbers = torch.arange(SLOTS * HEADS * CAPACITY).view(size)
    wide = numbers[..., None] + torch.arange(DIM)
    columns = {
        "keys": wide.unflatten(2, (-1, TILE)).transpose(-1, -2).to(dtype).contiguous(),
        "values": (wide % 101).to(dtype),
        "mass": numbers + 0.25,
        "positions": 3 * numbers % (3 * CAPACITY),
        "features": numbers + 0.5,
    }
    if dtype == torch.int8:
        columns |= {"key_scales": numbers + 0.125, "value_scales": numbers + 0.375}
    return columns


def _add(model: Any, columns: dict[str, Tensor]) -> None:
    names = ("keys", "values", "mass", "positions", "key_scales", "value_scales", "features")
    model.add_plane(0, [0, 1], 0, *(columns.get(name) for name in names))


def _compact(model: Any, slots: list[int], scores: Tensor) -> None:
    """Compact the first COUNT entries of some slots; scores (len(slots), G, COUNT)."""
    lengths = torch.full((len(slots),), LENGTH)
    sinks = torch.full((len(slots),), SINK)
    model.compact(0, 0, torch.tensor(slots), scores, COUNT, BUDGET, RECENT, lengths, sinks)


def _by_entry(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the columns, with entries along axis 2 in all of them."""
    keys = columns["keys"].transpose(-1, -2).flatten(2, 3)
    return {name: tensor.clone() for name, tensor in {**columns, "keys": keys}.items()}


def _kept(positions: Tensor, scores: Tensor) -> list[int]:
    """Select the entries of one slot and head with plain Python."""
    protected = [p < SINK or p >= LENGTH - RECENT for p in positions.tolist()]
    ranks = [
        float("inf") if safe else float("-inf") if score != score else score
        for safe, score in zip(protected, scores.tolist(), strict=False)
    ]
    return sorted(sorted(range(COUNT), key=lambda i: (-ranks[i], i))[:BUDGET])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_compaction_moves_every_column_of_an_entry(dtype: torch.dtype, threads: int) -> None:
    model, columns, slots = _model(threads), _columns(dtype), [2, 0]
    _add(model, columns)
    before = _by_entry(columns)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(slots), HEADS, COUNT, generator=generator, dtype=torch.float64)
    _compact(model, slots, scores)
    after = _by_entry(columns)
    for name, column in after.items():
        assert torch.equal(column[1], before[name][1]), f"{name} of another slot"
        for row, slot in enumerate(slots):
            for head in range(HEADS):
                kept = _kept(before["positions"][slot, head], scores[row, head])
                moved = column[slot, head, :BUDGET]
                assert torch.equal(moved, before[name][slot, head, kept]), name


def test_entries_whose_score_is_nan_rank_last() -> None:
    """Sinks and recent entries stay anyway; of equal scores the older stays."""
    model, columns = _model(), _columns(torch.float32)
    _add(model, columns)
    positions = columns["positions"][0].clone()
    scores = torch.zeros(1, HEADS, COUNT, dtype=torch.float64)
    scores[0, 0, :40] = float("nan")
    scores[0, 1] = float("nan")
    _compact(model, [0], scores)
    kept = columns["positions"][0, :, :BUDGET]
    assert torch.equal(kept[0], positions[0, [*range(15), *range(40, 45)]])
    assert torch.equal(kept[1], positions[1, [*range(18), 43, 44]])


def test_rows_have_the_columns_that_python_names() -> None:
    model = _model()
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=f"rows have {len(RowColumns._fields)} columns"):
        model.forward(one, torch.zeros(1, 9, dtype=torch.int64), one, torch.zeros(1), one, one)
    with pytest.raises(RuntimeError, match=f"rows have {len(AcceptColumns._fields)} columns"):
        model.accept(torch.zeros(1, 9, dtype=torch.int64))
