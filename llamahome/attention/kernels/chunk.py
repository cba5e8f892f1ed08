"""Attention of a chunk's queries to their slot, the chunk included, with the mass of each key.

Axes: B rows, H query heads, G KV heads, T queries, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.kernels.implementation import Implementation, check_heads, check_mass
from llamahome.attention.kernels.record import KVRecord
from llamahome.attention.kernels.slots_torch import attend_slots_torch


def chunk_attend(
    query: Tensor,
    kv: KVRecord,
    slots: Tensor,
    held: Tensor,
    tokens: Tensor,
    scaling: float,
    *,
    weights: Tensor | None = None,
    group: str = "sum",
    implementation: Implementation,
) -> Tensor:
    """Compute causal attention of the tokens that were just written behind what a slot held.

    Query t of a row sees the first `held + t + 1` entries of its slot. Rows with fewer tokens are
    padded on the right; the output for padding is finite and undefined.

    Args:
        query: (B, H, T, D); H is a multiple of G.
        kv: the chunk's own keys and values are in it already. Its mass is updated in place where
            `weights` are given: each entry gains the sum over the queries of weight times
            probability.
        slots: (B,), int64, the slot of each row, all different.
        held: (B,), int64, entries from before these tokens.
        tokens: (B,), int64, of each row, from 1 to T.
        scaling: factor on the logits.
        weights: (B, T), as wide as the mass, 0 for padding; None adds no mass. `triton` takes
            float32 only.
        group: `sum` or `max` of the probabilities over the query heads of a KV group.
        implementation: `torch` holds all probabilities at once, `triton` never.

    Returns:
        (B, H, T, D), in the query's dtype.

    Raises:
        ValueError: for heads that do not fit together, or mass of the wrong kind.
    """
    check_heads(query, kv)
    check_mass(kv, weights, group)
    if implementation == "triton":
        from llamahome.attention.kernels.chunk_triton import chunk_attend_triton

        return chunk_attend_triton(
            query, kv, slots, held, tokens, scaling, weights, group_max=group == "max"
        )
    places = torch.arange(kv.keys.shape[2], device=query.device)
    last = held[:, None] + torch.arange(query.shape[2], device=query.device)  # (B, T)
    written = places < (held + tokens)[:, None]  # (B, C)
    visible = (places <= last[..., None]) & written[:, None]
    return attend_slots_torch(query, kv, slots, visible, scaling, weights, group)
