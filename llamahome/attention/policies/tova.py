"""The keys that a chunk's last query looks at.

Oren et al. 2024, "Transformers are Multi-State RNNs" (TOVA), arXiv 2401.06104, section 3.2. There
one set of tokens is kept for all heads of a layer; here each KV head keeps its own.
"""

from __future__ import annotations

from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.config import PolicyConfig


def mass(config: PolicyConfig) -> Mass:
    """Count a chunk's last query."""
    return Mass((*(0.0,) * (config.interval - 1), 1.0), carry=0.0, group=config.group)


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by mass from the last query."""
    return entries.mass
