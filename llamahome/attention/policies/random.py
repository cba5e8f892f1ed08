"""A control: a uniform sample of the past, the same one however the tokens arrive."""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.config import PolicyConfig

_LOW = (1 << 31) - 1


def mass(config: PolicyConfig) -> None:
    """Count none: the score does not read attention."""


def score(entries: Entries, config: PolicyConfig) -> Tensor:
    """Rank by a hash of position, layer, head and seed.

    Every token draws its rank once, so the kept ones are a reservoir sample of all tokens so far
    and, unlike draws from a generator, a pure function of them.
    """
    heads = torch.tensor(entries.heads, device=entries.positions.device)
    stream = (config.seed * 1_000_003 + entries.layer_idx) * 1_009 + heads
    mixed = entries.positions * 2_654_435_761 + stream[:, None] * 40_503 + 12_345
    for multiplier in (1_103_515_245, 1_597_334_677):
        mixed = mixed & _LOW
        mixed = ((mixed ^ (mixed >> 15)) * multiplier) & _LOW
        mixed = mixed ^ (mixed >> 13)
    return mixed.double()
