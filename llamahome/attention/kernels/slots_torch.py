"""Attention to whole slots in torch: the plain version behind the doors that attend.

Axes: B rows, H query heads, G KV heads, T queries, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.kernels.record import KVRecord


def attend_slots_torch(
    query: Tensor,
    kv: KVRecord,
    slots: Tensor,
    visible: Tensor,
    scaling: float,
    weights: Tensor | None,
    group: str,
) -> Tensor:
    """Attend with queries (B, H, T, D), the last of which sees all that is `visible` (B, T, C)."""
    # An earlier request may have left NaN behind these entries, and 0 * NaN is NaN.
    hidden = ~visible[:, -1, None, :, None]
    out, received = attend(
        query,
        kv.keys.index_select(0, slots).to(query.dtype),
        kv.values.index_select(0, slots).to(query.dtype).masked_fill(hidden, 0.0),
        visible,
        scaling,
        counted=weights,
        group=group,
    )
    if received is not None:
        kv.mass.index_add_(0, slots, received.to(kv.mass.dtype))
    return out
