"""Attention of some queries over some keys, with the mass each key receives.

Axes: B batch, H query heads, G KV heads, T queries, S keys, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scaling: float,
    *,
    counted: Tensor | None,
    group: str = "sum",
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute scaled dot-product attention, and the probability mass per key.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D), already rotated; H is a multiple of G.
        value: (B, G, S, D).
        visible: bool, broadcastable to (B, T, S): which keys a query sees.
        scaling: factor on the logits.
        counted: broadcastable to (B, T): weight of each query's probabilities in the mass. None
            asks for no mass, which lets torch's fused kernel do the work.
        group: `sum` or `max` of the probabilities over the query heads of a KV group.
        bias: (B, G, S), added to the logits of each key, for all queries.

    Returns:
        Output (B, H, T, D), and mass (B, G, S) in float32 or wider, without gradient.
    """
    if counted is None:
        shown = visible.unsqueeze(-3)
        if bias is not None:
            # One row of the mask for each query head: (B, H, T, S).
            per_head = bias.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            shown = per_head.unsqueeze(-2).masked_fill(~shown, float("-inf")).to(query.dtype)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=shown,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out, None
    batch, heads, queries, dim = query.shape
    groups, keys = key.shape[1], key.shape[2]
    # All query heads of a KV group against its keys in one product: (B, G, R * T, S).
    grouped = query.reshape(batch, groups, -1, dim)
    logits = torch.matmul(grouped, key.transpose(-1, -2)) * scaling
    logits = logits.view(batch, groups, heads // groups, queries, keys)
    if bias is not None:
        logits = logits + bias[:, :, None, None].to(logits.dtype)
    hidden = ~visible.unsqueeze(-3).unsqueeze(-3)
    logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    wide = torch.promote_types(query.dtype, torch.float32)
    probs = torch.softmax(logits, dim=-1, dtype=wide)
    received = probs.detach()
    per_query = received.sum(dim=2) if group == "sum" else received.amax(dim=2)  # (B, G, T, S)
    mass = (per_query * counted.to(wide)[..., None, :, None]).sum(dim=2)
    out = torch.matmul(probs.to(query.dtype).view(batch, groups, -1, keys), value)
    return out.view(batch, heads, queries, dim), mass
