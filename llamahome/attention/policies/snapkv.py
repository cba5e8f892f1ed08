"""The keys that a chunk's last queries look at, smoothed over neighbours.

Li et al. 2024, "SnapKV", arXiv 2404.14469, section 4.2. There it is done once, after the prompt;
here at every chunk's end.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass
from llamahome.config import PolicyConfig

KERNEL = 7


def mass(config: PolicyConfig) -> Mass:
    """Count the last `window` queries of a chunk, or all of a shorter chunk."""
    first = config.interval - config.window
    weights = tuple(float(offset >= first) for offset in range(config.interval))
    return Mass(weights, carry=0.0, group=config.group)


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by mass averaged over an entry and its three neighbours on either side."""
    return F.avg_pool1d(
        entries.mass, KERNEL, stride=1, padding=KERNEL // 2, count_include_pad=False
    )
