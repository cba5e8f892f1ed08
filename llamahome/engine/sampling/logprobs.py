"""Log-probabilities under the model alone. B: positions, V: vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamahome.engine.sampling import ranking

TopLogprobs = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, the likeliest first."""

Logprob = tuple[float | None, TopLogprobs]
"""A token's log-probability, with the top alternatives; None and nothing for the first token of a
prompt, which nothing predicts."""


class PromptLogprobs:
    """Log-probabilities of a prompt's tokens, collected as its chunks are computed."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        self._prompt = prompt
        self._count = count
        self.found: list[Logprob] = [(None, ())]

    def add(self, logits: Tensor) -> None:
        """Take in the logits (T, V) after each of the next T tokens of the prompt."""
        done = len(self.found)
        tokens = self._prompt[done : done + len(logits)]
        if tokens:
            self.found += logprobs_of(logits[: len(tokens)], tokens, [self._count] * len(tokens))


def logprobs_of(
    logits: Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[tuple[float, TopLogprobs]]:
    """Return each token's log-probability, with the top alternatives.

    Args:
        logits: (B, V).
        tokens: B token ids.
        counts: number of alternatives, per row.
    """
    index = torch.tensor(tokens, device=logits.device)[:, None]
    total = logits.logsumexp(dim=1)
    own = (logits.gather(1, index)[:, 0] - total).tolist()
    if not any(counts):
        return [(logprob, ()) for logprob in own]
    values, ids = ranking.top(logits, max(counts))
    values -= total.double().cpu().numpy()[:, None]
    alternatives = [
        tuple(zip(ids[i, :count].tolist(), values[i, :count].tolist(), strict=True))
        for i, count in enumerate(counts)
    ]
    return list(zip(own, alternatives, strict=True))
