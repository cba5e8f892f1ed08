"""What the doors of the kernels share: the choice of an implementation, and their checks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Implementation = Literal["torch", "triton"]


def fastest(device: torch.device) -> Implementation:
    """The one for tensors on this device."""
    return "triton" if device.type == "cuda" else "torch"


def check_heads(query: Tensor, keys: Tensor) -> None:
    """Raise `ValueError` unless `query` (B, H, T, D) fits `keys` (slots, G, C, D)."""
    heads, groups = query.shape[1], keys.shape[1]
    if heads % groups or query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"{heads} query heads of {query.shape[-1]} do not fit {groups} KV heads of "
            f"{keys.shape[-1]}: heads must be a multiple, head_dim the same"
        )


def check_mass(mass: Tensor, weights: Tensor | None, group: str, keys: Tensor) -> None:
    """Raise `ValueError` unless mass can be counted for `keys` (slots, G, C, D)."""
    if weights is None:
        raise ValueError("weights=None: mass needs the weight of each query")
    if mass.shape != keys.shape[:3]:
        raise ValueError(
            f"mass is of shape {tuple(mass.shape)}; it must be {tuple(keys.shape[:3])}, as the keys"
        )
    if group not in ("sum", "max"):
        raise ValueError(f"group={group!r}; it must be sum or max")


def check_layout(**tensors: Tensor | None) -> None:
    """Raise `ValueError` unless a kernel can walk what slots hold: it must lie without gaps."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; a kernel needs it contiguous")


def check_rows_of(**tensors: Tensor) -> None:
    """Raise `ValueError` unless the last axis lies without gaps, as kernels read it."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; the last must be 1")


def check_single(**tensors: Tensor | None) -> None:
    """Raise `ValueError` unless sums are kept in float32, as kernels do."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; the triton kernels count in float32")
