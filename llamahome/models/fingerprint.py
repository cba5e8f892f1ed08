"""A name for what a model computes, the same wherever and whenever it is loaded."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import nn


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A digest of every weight's name, shape and moments; adapters are weights like any other.

    Not a checksum: it tells models apart, and is no proof against who wants two alike.
    """
    digest = blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        wide = weight.detach().float()
        moments = (wide.sum(dtype=torch.float64), wide.square().sum(dtype=torch.float64))
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(" ".join(f"{float(moment):.6e}" for moment in moments).encode())
    return digest.hexdigest()
