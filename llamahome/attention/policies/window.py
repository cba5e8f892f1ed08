"""Recency only: sinks and the newest keys.

Xiao et al. 2023, "StreamingLLM", arXiv 2309.17453, section 3.2.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig


def mass(config: PolicyConfig) -> None:
    """None is needed."""


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Position: the newer, the higher."""
    return entries.positions.double()
