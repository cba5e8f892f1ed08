"""Weights in the layout of the C++ kernels: panels of 16 outputs. Axes: N outputs, K inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16  # outputs of a panel; two panels are computed together
GROUP = 64  # inputs that share a scale
ALIGNMENT = 64  # bytes of a cache line


class Arena:
    """Memory for weights in huge pages, shared since most layers are smaller than one page."""

    CHUNK = 2**26

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """Copy `tensor` into the arena, which lives as long as any of its tensors."""
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if self._used + size > len(self._chunk):
            self._chunk = torch.empty(max(size, self.CHUNK), dtype=torch.uint8)
            torch.ops.llamahome.advise_huge_pages(self._chunk)
            self._used = 0
        taken = self._chunk[self._used : self._used + tensor.nbytes]
        self._used += size
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    int8: bool,
    interleave: bool = False,
    arena: Arena | None = None,
) -> Any:
    """Pack a linear layer for the kernels.

    Args:
        weight: (N, K).
        bias: (N,) or None.
        int8: 8 bits with a bfloat16 scale for each output and group of 64 inputs (symmetric,
            rounded to nearest); otherwise float32.
        interleave: rows are a gate's and then as many of an up projection: alternate their panels,
            so that a pair of panels holds the factors of SwiGLU.
        arena: memory for the weights; None leaves that to torch.
    """
    rows = _rows(weight.shape[0], interleave, weight.device)
    ordered = _take_rows(weight.detach().float(), rows)
    packed, scales = _quantized(ordered) if int8 else (_panels(ordered), None)
    ordered_bias = None if bias is None else _take_rows(bias.detach().float(), rows)
    if arena is not None:
        packed = arena.place(packed)
        scales = None if scales is None else arena.place(scales)
    return torch.classes.llamahome.Linear(packed, scales, ordered_bias, weight.shape[1])


def adapter(down: Tensor, up: Tensor, *, interleave: bool = False) -> tuple[Tensor, Tensor]:
    """Pack a low-rank pair, down (r, K) and up (N, r), in the order of `linear`'s panels."""
    rows = _rows(up.shape[0], interleave, up.device)
    return down.detach().float().contiguous(), _panels(_take_rows(up.detach().float(), rows))


def _rows(count: int, interleave: bool, device: torch.device) -> Tensor:
    """Return the order of rows in the panels; -1 pads to whole pairs of panels."""
    if not interleave:
        return F.pad(torch.arange(count, device=device), (0, -count % (2 * LANES)), value=-1)
    half = count // 2
    padded = F.pad(torch.arange(half, device=device), (0, -half % LANES), value=-1).view(-1, LANES)
    up = torch.where(padded >= 0, padded + half, -1)
    return torch.stack([padded, up], dim=1).flatten()


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    taken: Tensor = tensor[rows.clamp(min=0)]
    taken[rows < 0] = 0
    return taken


def _panels(weight: Tensor) -> Tensor:
    """Arrange (N, K) as (N / 16, K, 16)."""
    panels: Tensor = weight.unflatten(0, (-1, LANES))
    return panels.transpose(1, 2).contiguous()


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (N, K) to weight + 128, (N/16, K/64, 16, 16, 4), and scales (N/16, K/64, 16)."""
    grouped = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = (grouped.abs().amax(dim=-1) / 127).bfloat16()
    # bfloat16 may have rounded a scale down: then the largest weight is clamped.
    divisor = scales.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    steps = (grouped / divisor).round().clamp(-127, 127).add(128).to(torch.uint8)
    panels = steps.unflatten(-1, (-1, 4)).unflatten(0, (-1, LANES))  # (N/16, 16, K/64, 16, 4)
    return panels.permute(0, 2, 3, 1, 4).contiguous(), scales.unflatten(0, (-1, LANES)).transpose(
        1, 2
    ).contiguous()
