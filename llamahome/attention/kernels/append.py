"""Writing one entry per row. Axes: B rows, G KV heads, C capacity of a slot, D head_dim."""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation


def append(
    keys: Tensor,
    values: Tensor,
    mass: Tensor,
    positions: Tensor,
    rows: Tensor,
    places: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    implementation: Implementation,
) -> None:
    """Write one entry, without mass, into the slot of each row, in place.

    Args:
        keys, values: (slots, G, C, D).
        mass, positions: (slots, G, C).
        rows: (B,), int64, the slot of each row. Only rows that write nothing may share a slot.
        places: (B,), int64, where in the slot; -1 writes nothing.
        key, value: (B, G, 1, D).
        position: (B,), int64, of the token in its sequence.
        implementation: `torch` takes a dozen small kernels, `triton` one.
    """
    if implementation == "triton":
        from llamahome.attention.kernels.append_triton import append_triton

        append_triton(keys, values, mass, positions, rows, places, key, value, position)
        return
    real = places >= 0
    # Rows that write nothing write what is there: shapes do not depend on how many they are.
    target = (rows, slice(None), places.clamp(min=0))
    for stored, new in ((keys, key), (values, value)):
        old = stored[target]  # (B, G, D)
        stored[target] = torch.where(real[:, None, None], new[:, :, 0].to(stored.dtype), old)
    mass[target] = torch.where(real[:, None], 0.0, mass[target])
    positions[target] = torch.where(real[:, None], position[:, None], positions[target])
