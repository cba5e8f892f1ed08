"""Log-probabilities under the model alone. B: positions, V: vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamahome.engine import ranking

TopLogprobs = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, the likeliest first."""


def logprobs_of(
    logits: Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[tuple[float, TopLogprobs]]:
    """Of each of `tokens` its log-probability, and the likeliest tokens in its place.

    Args:
        logits: (B, V).
        tokens: B of them.
        counts: how many of the likeliest, per row.
    """
    index = torch.tensor(tokens, device=logits.device)[:, None]
    total = logits.logsumexp(dim=1)
    own = (logits.gather(1, index)[:, 0] - total).tolist()
    if not any(counts):
        return [(logprob, ()) for logprob in own]
    values, ids = ranking.top(logits, max(counts))
    values -= total.double().cpu().numpy()[:, None]
    likeliest = [
        tuple(zip(ids[i, :count].tolist(), values[i, :count].tolist(), strict=True))
        for i, count in enumerate(counts)
    ]
    return list(zip(own, likeliest, strict=True))
