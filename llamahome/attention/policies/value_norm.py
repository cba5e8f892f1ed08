"""Heavy hitters weighted by their values: mass times the norm of the value.

Guo et al. 2024, "Attention Score is not All You Need for Token Importance Indicator in KV Cache
Reduction: Value Also Matters" (VATP), arXiv 2406.12335, section 3.2, which takes the L1 norm.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.policies import h2o
from llamahome.config import PolicyConfig

mass = h2o.mass


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by the score of h2o times the L1 norm of the value."""
    return h2o.score(entries, config) * entries.values.to(entries.mass.dtype).abs().sum(dim=-1)
