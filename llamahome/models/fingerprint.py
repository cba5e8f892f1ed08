"""A name for what a model computes, the same wherever and whenever it is loaded."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A digest of every weight's name, shape and moments; adapters are weights like any other.

    Rotary frequencies and the scales of adapters count, too. Not a checksum: it tells models apart,
    and is no proof against who wants two alike. Not covered: the epsilon of the norms.
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
