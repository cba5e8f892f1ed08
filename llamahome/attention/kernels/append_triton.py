# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
"""Appending in one kernel: each program writes one entry of one head.

Axes: B rows, G KV heads, C capacity, D head_dim."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llamahome.attention.kernels.implementation import check_contiguous, check_last_axis
from llamahome.attention.kernels.record import KVRecord


@triton.jit
def _append(
    keys_ptr,
    values_ptr,
    mass_ptr,
    positions_ptr,
    slots_ptr,
    places_ptr,
    key_ptr,
    value_ptr,
    position_ptr,
    key_stride_b,
    key_stride_g,
    value_stride_b,
    value_stride_g,
    G,
    C,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    place = tl.load(places_ptr + row)
    if place >= 0:
        at = (tl.load(slots_ptr + row) * G + head) * C + place
        dims = tl.arange(0, PADDED_D)
        real = dims < D
        key = tl.load(key_ptr + row * key_stride_b + head * key_stride_g + dims, mask=real)
        value = tl.load(value_ptr + row * value_stride_b + head * value_stride_g + dims, mask=real)
        tl.store(keys_ptr + at * D + dims, key.to(keys_ptr.dtype.element_ty), mask=real)
        tl.store(values_ptr + at * D + dims, value.to(values_ptr.dtype.element_ty), mask=real)
        tl.store(mass_ptr + at, 0.0)
        tl.store(positions_ptr + at, tl.load(position_ptr + row))


def append_triton(
    kv: KVRecord, slots: Tensor, places: Tensor, key: Tensor, value: Tensor, position: Tensor
) -> None:
    """Append in Triton; the arguments are those of `append`.

    Raises:
        ValueError: for tensors with gaps.
    """
    check_contiguous(**kv.columns, slots=slots, places=places, position=position)
    check_last_axis(key=key, value=value)
    groups, capacity, dim = kv.keys.shape[1:]
    _append[(key.shape[0], groups)](
        kv.keys,
        kv.values,
        kv.mass,
        kv.positions,
        slots,
        places,
        key,
        value,
        position,
        *key.stride()[:2],
        *value.stride()[:2],
        groups,
        capacity,
        D=dim,
        PADDED_D=triton.next_power_of_2(dim),
    )
