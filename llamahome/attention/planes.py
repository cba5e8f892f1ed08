"""Attention of a layer whose KV heads are split into planes.

Axes: B batch, H query heads, G KV heads, R query heads of a KV head, T tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class HasHeads(Protocol):
    """Some KV heads of a layer."""

    @property
    def heads(self) -> tuple[int, ...]: ...


P = TypeVar("P", bound=HasHeads)


def attend_by_plane(
    planes: Sequence[P],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend_plane: Callable[[P, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attend with the heads of each plane apart: (B, H, T, D), differentiable.

    Args:
        planes: together they have each KV head of the layer once.
        query: (B, H, T, D).
        key, value: (B, G, T, D).
        attend_plane: from a plane and the query, key and value of its heads to its output.
    """
    if len(planes) == 1:
        return attend_plane(planes[0], query, key, value)
    grouped = query.unflatten(1, (key.shape[1], -1))  # (B, G, R, T, D)
    *indices, order = head_indices(tuple(plane.heads for plane in planes), query.device)
    outputs = []
    for plane, index in zip(planes, indices, strict=True):
        own = grouped.index_select(1, index).flatten(1, 2)
        attended = attend_plane(
            plane, own, key.index_select(1, index), value.index_select(1, index)
        )
        outputs.append(attended.unflatten(1, (len(plane.heads), -1)))
    return torch.cat(outputs, dim=1).index_select(1, order).flatten(1, 2)


@cache
def head_indices(heads: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, ...]:
    """Return the heads of each plane as an index, and last the order that undoes the split.

    They are made once per device: the capture of a CUDA graph cannot copy them from the host.
    """
    joined = [head for plane in heads for head in plane]
    order = sorted(range(len(joined)), key=joined.__getitem__)
    # Tensors made in inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        return tuple(torch.tensor(index, device=device) for index in (*heads, order))
