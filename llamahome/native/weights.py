"""Weights in the layout of the C++ kernels: panels of 16 outputs. Axes: N outputs, K inputs."""

from __future__ import annotations

import math
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

    def empty(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory, which lives as long as any tensor of the arena."""
        nbytes = math.prod(size) * dtype.itemsize
        room = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if self._used + room > len(self._chunk):
            self._chunk = torch.empty(max(room, self.CHUNK), dtype=torch.uint8)
            torch.ops.llamahome.advise_huge_pages(self._chunk)
            self._used = 0
        taken = self._chunk[self._used : self._used + nbytes]
        self._used += room
        return taken.view(dtype).view(size)


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
        arena: memory for the weights; None is one of their own.
    """
    rows = _rows(weight.shape[0], interleave, weight.device)
    arena = arena or Arena()
    wide = weight.detach().float().contiguous()
    packed, scales = (_quantized if int8 else _panels)(wide, rows, arena)
    ordered_bias = None if bias is None else _take_rows(bias.detach().float(), rows)
    return torch.classes.llamahome.Linear(packed, scales, ordered_bias, weight.shape[1])


def adapter(down: Tensor, up: Tensor, *, interleave: bool = False) -> tuple[Tensor, Tensor]:
    """Pack a low-rank pair, down (r, K) and up (N, r), in the order of `linear`'s panels."""
    rows = _rows(up.shape[0], interleave, up.device)
    return down.detach().float().contiguous(), _arranged(_take_rows(up.detach().float(), rows))


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


def _arranged(weight: Tensor) -> Tensor:
    """Arrange (N, K) as (N / 16, K, 16)."""
    panels: Tensor = weight.unflatten(0, (-1, LANES))
    return panels.transpose(1, 2).contiguous()


def _panels(weight: Tensor, rows: Tensor, arena: Arena) -> tuple[Tensor, None]:
    """Arrange `rows` of a weight in float32."""
    panels = _arranged(_take_rows(weight, rows))
    return arena.empty(*panels.shape, dtype=panels.dtype).copy_(panels), None


def _quantized(weight: Tensor, rows: Tensor, arena: Arena) -> tuple[Tensor, Tensor]:
    """Quantise `rows` of (N, K) to weight + 128, (N/16, K/64, 16, 16, 4), and scales."""
    panels, groups = len(rows) // LANES, -(-weight.shape[1] // GROUP)
    packed = arena.empty(panels, groups, GROUP // 4, LANES, 4, dtype=torch.uint8)
    scales = arena.empty(panels, groups, LANES, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    torch.ops.llamahome.quantize_linear(weight, rows, packed, scales, threads)
    return packed, scales
