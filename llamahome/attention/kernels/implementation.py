"""The choice of a kernel's implementation, and the checks that the kernels share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llamahome.attention.kernels.record import KVRecord

Implementation = Literal["torch", "triton"]


def fastest(device: torch.device) -> Implementation:
    """Return the implementation for tensors on this device."""
    return "triton" if device.type == "cuda" else "torch"


def check_heads(query: Tensor, kv: KVRecord) -> None:
    """Raise `ValueError` unless `query` (B, H, T, D) fits the keys (slots, G, C, D)."""
    heads, groups = query.shape[1], kv.keys.shape[1]
    if heads % groups or query.shape[-1] != kv.keys.shape[-1]:
        raise ValueError(
            f"{heads} query heads of {query.shape[-1]} do not fit {groups} KV heads of "
            f"{kv.keys.shape[-1]}: heads must be a multiple, head_dim the same"
        )


def check_mass(kv: KVRecord, weights: Tensor | None, group: str) -> None:
    """Raise `ValueError` unless mass can be added with these weights; None adds none."""
    if weights is None:
        return
    if kv.mass.shape != kv.keys.shape[:3]:
        raise ValueError(
            f"mass is of shape {tuple(kv.mass.shape)}; it must be {tuple(kv.keys.shape[:3])}, as "
            "the keys"
        )
    if group not in ("sum", "max"):
        raise ValueError(f"group={group!r}; it must be sum or max")


def check_contiguous(**tensors: Tensor | None) -> None:
    """Raise `ValueError` unless tensors have no gaps, as kernels read them."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; a kernel needs it contiguous")


def check_last_axis(**tensors: Tensor) -> None:
    """Raise `ValueError` unless the last axis has no gaps, as kernels read it."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; the last must be 1")


def check_attention(
    query: Tensor, kv: KVRecord, weights: Tensor | None, **indices: Tensor
) -> Tensor | None:
    """Return the mass to add to; None without weights.

    Raises:
        ValueError: unless the Triton kernels can read the layout, and sums are in float32.
    """
    mass = None if weights is None else kv.mass
    check_last_axis(query=query, keys=kv.keys, values=kv.values)
    check_contiguous(mass=mass, weights=weights, **indices)
    for name, tensor in (("mass", mass), ("weights", weights)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; the triton kernels count in float32")
    return mass
