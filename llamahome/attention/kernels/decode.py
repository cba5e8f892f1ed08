"""One new query per row over what its slot holds, with the mass in the same pass.

Axes: B rows, H query heads, G KV heads, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.attend import attend
from llamahome.attention.kernels.implementation import Implementation, check_heads, check_mass


def decode_attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    counts: Tensor,
    scaling: float,
    *,
    mass: Tensor | None = None,
    weights: Tensor | None = None,
    group: str = "sum",
    implementation: Implementation,
) -> Tensor:
    """Attention of one query per row over the first entries of its slot.

    No shape depends on what the slots hold, so a CUDA graph can be captured once and replayed.

    Args:
        query: (B, H, 1, D); H is a multiple of G.
        keys, values: (slots, G, C, D), as a plane stores them.
        rows: (B,), int64, the slot of each row. Only rows of weight 0 may share a slot.
        counts: (B,), int64, entries that the query sees, its own included; from 1 to C.
        scaling: factor on the logits.
        mass: (slots, G, C), float32 (`torch` also takes wider), updated in place: each visible
            entry gains the row's weight times its probability. None counts nothing.
        weights: (B,), as wide as `mass`, of each row's query; needed with `mass`.
        group: `sum` or `max` of the probabilities over the query heads of a KV group.
        implementation: `torch` reads whole slots; `triton` only what is visible.

    Returns:
        (B, H, 1, D), in the query's dtype.

    Raises:
        ValueError: for heads that do not fit together, or mass of the wrong kind.
    """
    check_heads(query, keys)
    if mass is not None:
        check_mass(mass, weights, group, keys)
    if implementation == "triton":
        from llamahome.attention.kernels.decode_triton import decode_attend_triton

        return decode_attend_triton(
            query, keys, values, rows, counts, scaling, mass, weights, group == "max"
        )
    visible = torch.arange(keys.shape[2], device=keys.device) < counts[:, None]  # (B, C)
    hidden = ~visible[:, None, :, None]
    out, received = attend(
        query,
        keys.index_select(0, rows).to(query.dtype),
        # What an earlier request left there may not be finite, and 0 * NaN is NaN.
        values.index_select(0, rows).to(query.dtype).masked_fill(hidden, 0.0),
        visible[:, None],
        scaling,
        counted=None if mass is None or weights is None else weights[:, None],
        group=group,
    )
    if mass is not None and received is not None:
        mass.index_add_(0, rows, received.to(mass.dtype))
    return out
