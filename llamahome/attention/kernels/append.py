"""Appending one entry per row. Axes: B rows, G KV heads, C capacity of a slot, D head_dim."""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation
from llamahome.attention.kernels.record import KVRecord


def append(
    kv: KVRecord,
    slots: Tensor,
    places: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    implementation: Implementation,
) -> None:
    """Write one entry, without mass, into the slot of each row, in place.

    Args:
        slots: (B,), int64, the slot of each row. Only rows that write nothing may share a slot.
        places: (B,), int64, where in the slot; -1 writes nothing.
        key, value: (B, G, 1, D).
        position: (B,), int64, of the token in its sequence.
        implementation: `torch` takes a dozen small kernels, `triton` one.
    """
    if implementation == "triton":
        from llamahome.attention.kernels.append_triton import append_triton

        append_triton(kv, slots, places, key, value, position)
        return
    real = places >= 0
    # Rows that write nothing write what is there: shapes do not depend on how many they are.
    target = (slots, slice(None), places.clamp(min=0))
    for stored, new in ((kv.keys, key), (kv.values, value)):
        old = stored[target]  # (B, G, D)
        stored[target] = torch.where(real[:, None, None], new[:, :, 0].to(stored.dtype), old)
    kv.mass[target] = torch.where(real[:, None], 0.0, kv.mass[target])
    kv.positions[target] = torch.where(real[:, None], position[:, None], kv.positions[target])
