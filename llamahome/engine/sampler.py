"""From logits to the next token."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from llamahome.engine.params import SamplingParams


def sample(logits: Tensor, params: SamplingParams, generator: Generator) -> int:
    """The next token of one request.

    Args:
        logits: (V,), finite.
        params: greedy at temperature 0, else temperature and top_p.
        generator: the request's own, so that its draws do not depend on who shares the batch.
    """
    if params.temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.double().cpu() / params.temperature, dim=-1)
    if params.top_p < 1:
        probs = _nucleus(probs, params.top_p)
    return int(torch.multinomial(probs, 1, generator=generator))


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    ranked, order = probs.sort(descending=True, stable=True)
    # The token that crosses top_p stays, so at least one always does.
    ranked[ranked.cumsum(0) - ranked >= top_p] = 0
    return torch.zeros_like(probs).scatter(0, order, ranked)
