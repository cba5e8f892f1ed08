"""Hybrid attention: sinks, heavy hitters and recent keys across chunks, dense within a chunk."""

from llamahome.attention.attend import attend
from llamahome.attention.documents import Documents
from llamahome.attention.entries import Entries
from llamahome.attention.hybrid import Attender, HybridAttention
from llamahome.attention.once import walk_once
from llamahome.attention.policy import Plane, Policy, build_policy
from llamahome.attention.rotary import Rotary

__all__ = [
    "Attender",
    "Documents",
    "Entries",
    "HybridAttention",
    "Plane",
    "Policy",
    "Rotary",
    "attend",
    "build_policy",
    "walk_once",
]
