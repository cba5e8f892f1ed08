"""Compaction of slots in place. Axes: B slots, G KV heads, K kept, C capacity, D head_dim."""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation
from llamahome.attention.kernels.record import KVRecord


def compact(kv: KVRecord, slots: Tensor, index: Tensor, *, implementation: Implementation) -> None:
    """Move the entries that stay to the front of their slots, in place.

    The entries behind the first K are undefined afterwards.

    Args:
        slots: (B,), int64, all different.
        index: (B, G, K), int64, which entries stay, ascending.
        implementation: `torch` copies what stays twice, `triton` moves it once.
    """
    if implementation == "triton":
        from llamahome.attention.kernels.compact_triton import compact_triton

        compact_triton(kv, slots, index)
        return
    kept = index.shape[2]
    wide = index.unsqueeze(-1).expand(-1, -1, -1, kv.keys.shape[-1])
    for stored in kv.columns.values():
        source = index if stored.dim() == 3 else wide
        stored[slots, :, :kept] = stored.index_select(0, slots).gather(2, source)
