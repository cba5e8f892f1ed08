"""Heavy hitters: keep the keys that attention has gone to most.

Zhang et al. 2023, "H2O: Heavy-Hitter Oracle", arXiv 2306.14048, algorithm 1.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig

needs_mass = True


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Accumulated mass."""
    return entries.mass
