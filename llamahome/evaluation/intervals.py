"""95 % intervals of the figures of an evaluation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Interval = tuple[float, float]
Blocks = Sequence[Sequence[float]]

_Z = statistics.NormalDist().inv_cdf(0.975)


def wilson(right: int, asked: int) -> Interval:
    """Return the interval of a share.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", as Brown,
    Cai and DasGupta 2001, "Interval Estimation for a Binomial Proportion", equation 4.
    """
    share, spread = right / asked, _Z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    # Rounding may not put an end on the wrong side of a share of 0 or 1.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def paired_ratio(own: Blocks, dense: Blocks, tokens: int) -> tuple[float, Interval | None]:
    """Return by how much perplexity exceeds that of dense, as a share of it, and the interval.

    Both read the same blocks of text, so the differences of their blocks vary far less than the
    blocks do. A single block has no interval.

    Args:
        own: per window, sums of negative log likelihood over blocks of its tokens, in nats.
        dense: the same under dense attention.
        tokens: in all blocks.
    """
    differences = [
        mine - other
        for windows in zip(own, dense, strict=True)
        for mine, other in zip(*windows, strict=True)
    ]
    mean = sum(differences) / tokens
    if len(differences) < 2:
        return math.expm1(mean), None
    half = _Z * math.sqrt(len(differences) * statistics.variance(differences)) / tokens
    return math.expm1(mean), (math.expm1(mean - half), math.expm1(mean + half))
