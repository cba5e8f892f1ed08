"""Attention of one new query per row to its slot, with the mass in the same pass.

Axes: B rows, H query heads, G KV heads, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation, check_heads, check_mass
from llamahome.attention.kernels.record import KVRecord
from llamahome.attention.kernels.slots_torch import attend_slots_torch


def decode_attend(
    query: Tensor,
    kv: KVRecord,
    slots: Tensor,
    counts: Tensor,
    scaling: float,
    *,
    weights: Tensor | None = None,
    group: str = "sum",
    implementation: Implementation,
) -> Tensor:
    """Compute attention of one query per row to the first entries of its slot.

    No shape depends on what the slots hold, so a CUDA graph can be captured once and replayed.

    Args:
        query: (B, H, 1, D); H is a multiple of G.
        kv: its mass is updated in place where `weights` are given: each visible entry gains the
            row's weight times its probability.
        slots: (B,), int64, the slot of each row. Only rows of weight 0 may share a slot.
        counts: (B,), int64, entries that the query sees, its own included; from 1 to C.
        scaling: factor on the logits.
        weights: (B,), as wide as the mass, of each row's query; None adds no mass. `triton` takes
            float32 only.
        group: `sum` or `max` of the probabilities over the query heads of a KV group.
        implementation: `torch` reads whole slots; `triton` only what is visible.

    Returns:
        (B, H, 1, D), in the query's dtype.

    Raises:
        ValueError: for heads that do not fit together, or mass of the wrong kind.
    """
    check_heads(query, kv)
    check_mass(kv, weights, group)
    if implementation == "triton":
        from llamahome.attention.kernels.decode_triton import decode_attend_triton

        return decode_attend_triton(
            query, kv, slots, counts, scaling, weights, group_max=group == "max"
        )
    visible = torch.arange(kv.keys.shape[2], device=query.device) < counts[:, None]  # (B, C)
    each = None if weights is None else weights[:, None]
    return attend_slots_torch(query, kv, slots, visible[:, None], scaling, each, group)
