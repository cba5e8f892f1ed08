"""Policies, engines and token ids that the tests of evaluation share."""

from __future__ import annotations

import torch

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig

FULL = build_policy(PolicyConfig.dense(interval=16))
EXACT = EngineConfig(slots=3, weights="fp32")
TEXT = "the quick brown fox jumps over the lazy dog " * 60


def random_ids(*lengths: int) -> list[list[int]]:
    """Return texts of token ids that are no special tokens, always the same ones."""
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (n,), generator=draw).tolist() for n in lengths]
