"""Heavy hitters: keep the keys that attention has gone to most.

Zhang et al. 2023, "H2O: Heavy-Hitter Oracle", arXiv 2306.14048, algorithm 1. There mass is never
forgotten (`decay` None), counted from each key's first query on (`normalize` off) and summed over
the heads that share a key (`group` sum).
"""

from __future__ import annotations

import math

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.config import PolicyConfig


def mass(config: PolicyConfig) -> Mass:
    """Count every query; one that is `decay` tokens old counts 1/e of a new one."""
    kept = 1.0 if config.decay is None else math.exp(-1 / config.decay)
    weights = tuple(kept ** (config.interval - 1 - offset) for offset in range(config.interval))
    return Mass(weights, carry=kept**config.interval, group=config.group)


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by mass, or with `normalize` by its mean over the queries that saw the key."""
    if not config.normalize:
        return entries.mass
    if config.decay is None:
        return entries.mass / entries.ages
    # The queries' weights add up to a geometric series.
    kept = math.exp(-1 / config.decay)
    seen = (1 - kept ** entries.ages.to(entries.mass.dtype)) / (1 - kept)
    return entries.mass / seen
