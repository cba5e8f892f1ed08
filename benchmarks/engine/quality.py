"""Cost of int8 weights: perplexity from the engine's own log probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llamahome.engine import Engine, SamplingParams

READ = SamplingParams(max_tokens=0, prompt_logprobs=0)


def mean_nll(engine: Engine, windows: Sequence[list[int]]) -> float:
    """Return the mean negative log likelihood, in nats, of all tokens but each window's first."""
    for number, ids in enumerate(windows):
        engine.submit(str(number), ids, READ)
    found: list[float] = []
    while engine.has_work:
        for delta in engine.step():
            found += [own for own, _ in delta.prompt_logprobs if own is not None]
    expected = sum(len(ids) - 1 for ids in windows)
    if len(found) != expected:
        raise RuntimeError(f"the engine scored {len(found)} of {expected} tokens")
    return -sum(found) / expected


def perplexity_ratio(measured: Engine, reference: Engine, windows: Sequence[list[int]]) -> float:
    """Return the perplexity of one engine over that of another."""
    return math.exp(mean_nll(measured, windows) - mean_nll(reference, windows))
