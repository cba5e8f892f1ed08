"""Keys unlike the others, without looking at attention.

Park et al. 2025, "KeyDiff: Key Similarity-Based KV Cache Eviction", arXiv 2504.15364, section 3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig


def mass(config: PolicyConfig) -> None:
    """Count none: the score does not read attention."""


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by minus the cosine between a key and the mean direction of all keys held."""
    keys = F.normalize(entries.keys.to(entries.mass.dtype), dim=-1)
    return -F.cosine_similarity(keys, keys.mean(dim=2, keepdim=True), dim=-1)
