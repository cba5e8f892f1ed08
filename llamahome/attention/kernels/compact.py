"""Compaction of slots in place. Axes: B rows, G KV heads, K kept, C capacity, D head_dim."""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation


def compact(
    keys: Tensor,
    values: Tensor,
    mass: Tensor,
    positions: Tensor,
    rows: Tensor,
    index: Tensor,
    *,
    carry: float = 1.0,
    implementation: Implementation,
) -> None:
    """Move the entries that stay to the front of their slots, in place.

    What lies behind the first K entries afterwards means nothing.

    Args:
        keys, values: (slots, G, C, D).
        mass, positions: (slots, G, C).
        rows: (B,), int64, slots, no two alike.
        index: (B, G, K), int64, which entries stay, ascending.
        carry: factor on the mass of what stays.
        implementation: `torch` copies what stays twice, `triton` moves it once.
    """
    if implementation == "triton":
        from llamahome.attention.kernels.compact_triton import compact_triton

        compact_triton(keys, values, mass, positions, rows, index, carry)
        return
    kept = index.shape[2]
    wide = index.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
    for stored in (keys, values):
        stored[rows, :, :kept] = stored.index_select(0, rows).gather(2, wide)
    mass[rows, :, :kept] = mass.index_select(0, rows).gather(2, index) * carry
    positions[rows, :, :kept] = positions.index_select(0, rows).gather(2, index)
