"""A chunk's queries over what its slot holds, the chunk included, with the mass of each key.

Axes: B rows, H query heads, G KV heads, T queries, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.kernels.implementation import Implementation, check_heads, check_mass


def chunk_attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    held: Tensor,
    tokens: Tensor,
    scaling: float,
    *,
    mass: Tensor | None = None,
    weights: Tensor | None = None,
    group: str = "sum",
    implementation: Implementation,
) -> Tensor:
    """Causal attention of the tokens that were just written behind what a slot held.

    Query t of a row sees the first `held + t + 1` entries of its slot. Rows with fewer tokens are
    padded on the right; what comes out for padding is finite and means nothing.

    Args:
        query: (B, H, T, D); H is a multiple of G.
        keys, values: (slots, G, C, D), as a plane stores them, the chunk's own written already.
        rows: (B,), int64, the slot of each row, no two alike.
        held: (B,), int64, entries from before these tokens.
        tokens: (B,), int64, of each row, from 1 to T.
        scaling: factor on the logits.
        mass: (slots, G, C), float32 (`torch` also takes wider), updated in place: each entry gains
            the sum over the queries of weight times probability. None counts nothing.
        weights: (B, T), as wide as `mass`, 0 for padding; needed with `mass`.
        group: `sum` or `max` of the probabilities over the query heads of a KV group.
        implementation: `torch` holds all probabilities at once, `triton` never.

    Returns:
        (B, H, T, D), in the query's dtype.

    Raises:
        ValueError: for heads that do not fit together, or mass of the wrong kind.
    """
    check_heads(query, keys)
    if mass is not None:
        check_mass(mass, weights, group, keys)
    if implementation == "triton":
        from llamahome.attention.kernels.chunk_triton import chunk_attend_triton

        return chunk_attend_triton(
            query, keys, values, rows, held, tokens, scaling, mass, weights, group == "max"
        )
    places = torch.arange(keys.shape[2], device=keys.device)
    last = held[:, None] + torch.arange(query.shape[2], device=keys.device)  # (B, T)
    written = places < (held + tokens)[:, None]  # (B, C)
    visible = (places <= last[..., None]) & written[:, None]
    out, received = attend(
        query,
        keys.index_select(0, rows).to(query.dtype),
        # What an earlier request left there may not be finite, and 0 * NaN is NaN.
        values.index_select(0, rows).to(query.dtype).masked_fill(~written[:, None, :, None], 0.0),
        visible,
        scaling,
        counted=None if mass is None else weights,
        group=group,
    )
    if mass is not None and received is not None:
        mass.index_add_(0, rows, received.to(mass.dtype))
    return out
