"""The kernels' 8-bit arithmetic in plain torch. N outputs, K inputs in groups of 64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 64


def dequantized(weight: Tensor) -> Tensor:
    """Quantise (N, K) to int8 with a bfloat16 scale per output and group, and back."""
    grouped = _grouped(weight)
    scale = (grouped.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    steps = torch.where(scale > 0, grouped / scale, 0).round().clamp(-127, 127)
    return (steps * scale).flatten(-2)[..., : weight.shape[-1]]


def rounded(x: Tensor) -> Tensor:
    """Quantise activations (..., K) to int8 with a float32 scale per token and group, and back."""
    grouped = _grouped(x)
    peak = grouped.abs().amax(-1, keepdim=True)
    steps = (grouped * torch.where(peak > 0, 127 / peak, 0)).round()
    return (steps * (peak / 127)).flatten(-2)[..., : x.shape[-1]]


class Int8Linear(nn.Module):
    """Linear layer as the kernels compute it, except for the order of its sums."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(dequantized(linear.weight.detach()))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x), self.weight, self.bias)


def _grouped(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
