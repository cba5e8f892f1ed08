"""Recency only: sinks and the newest keys.

Xiao et al. 2023, "StreamingLLM", arXiv 2309.17453, section 3.2.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig


def mass(config: PolicyConfig) -> None:
    """Count none: the score does not read attention."""


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by position: the newer, the higher."""
    return entries.positions.double()
