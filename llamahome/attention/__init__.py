"""Hybrid attention: sinks, heavy hitters and recent keys across chunks, dense within a chunk."""

from llamahome.attention.attend import attend
from llamahome.attention.entries import Entries
from llamahome.attention.hybrid import HybridAttention
from llamahome.attention.policy import Policy, build_policy

__all__ = ["Entries", "HybridAttention", "Policy", "attend", "build_policy"]
