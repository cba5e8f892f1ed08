"""A name for what a model computes, the same wherever and whenever it is loaded."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Return a digest of every weight's name, shape and moments, adapters included.

    Rotary frequencies and the scales of adapters count, too. It distinguishes models, but it is no
    checksum: two different models can be made to share it. Not covered: the epsilon of the norms.
    """
    digest = blake2b(digest_size=16)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            digest.update(f"{name} {sorted(module.scaling.items())}".encode())
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        wide = weight.detach().float()
        moments = (wide.sum(dtype=torch.float64), wide.square().sum(dtype=torch.float64))
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(" ".join(f"{float(moment):.6e}" for moment in moments).encode())
    return digest.hexdigest()
