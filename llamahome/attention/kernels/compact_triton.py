# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
"""Compaction in place: each program moves one slice of one head, block by block from the front.

Indices ascend, so an entry never moves backwards: the blocks behind read nothing that the blocks
before wrote. Within a block every thread must have read before any writes, hence the barrier.

Axes: B slots, G KV heads, K kept, C capacity, D head_dim, in slices of W.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llamahome.attention.kernels.implementation import check_contiguous
from llamahome.attention.kernels.record import KVRecord

BLOCK = 64
SLICE = 32


@triton.jit
def _compact(
    keys_ptr,
    values_ptr,
    mass_ptr,
    positions_ptr,
    features_ptr,
    slots_ptr,
    index_ptr,
    G,
    C,
    K,
    D: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_FEATURES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    slot = tl.load(slots_ptr + row)
    base = (slot * G + head) * C
    index_base = index_ptr + (row * G + head) * K
    for first in range(0, K, BLOCK):
        places = first + tl.arange(0, BLOCK)
        kept = places < K
        source = tl.load(index_base + places, mask=kept, other=0)
        if part == 2 * SLICES:
            mass = tl.load(mass_ptr + base + source, mask=kept, other=0.0)
            position = tl.load(positions_ptr + base + source, mask=kept, other=0)
            if WITH_FEATURES:
                feature = tl.load(features_ptr + base + source, mask=kept, other=0.0)
            tl.debug_barrier()
            tl.store(mass_ptr + base + places, mass, mask=kept)
            tl.store(positions_ptr + base + places, position, mask=kept)
            if WITH_FEATURES:
                tl.store(features_ptr + base + places, feature, mask=kept)
        else:
            dims = (part % SLICES) * SLICE + tl.arange(0, SLICE)
            tile = kept[:, None] & (dims < D)[None, :]
            read = (base + source)[:, None] * D + dims[None, :]
            written = (base + places)[:, None] * D + dims[None, :]
            if part < SLICES:
                key = tl.load(keys_ptr + read, mask=tile, other=0.0)
                tl.debug_barrier()
                tl.store(keys_ptr + written, key, mask=tile)
            else:
                value = tl.load(values_ptr + read, mask=tile, other=0.0)
                tl.debug_barrier()
                tl.store(values_ptr + written, value, mask=tile)


def compact_triton(kv: KVRecord, slots: Tensor, index: Tensor) -> None:
    """Compact in Triton; the arguments are those of `compact`.

    Raises:
        ValueError: for tensors with gaps.
    """
    check_contiguous(**kv.columns, slots=slots)
    batch, groups, kept = index.shape
    capacity, dim = kv.keys.shape[2:]
    slices = triton.cdiv(dim, SLICE)
    _compact[(batch, groups, 2 * slices + 1)](
        kv.keys,
        kv.values,
        kv.mass,
        kv.positions,
        kv.mass if kv.features is None else kv.features,
        slots,
        index.contiguous(),
        groups,
        capacity,
        kept,
        D=dim,
        SLICE=SLICE,
        SLICES=slices,
        BLOCK=BLOCK,
        WITH_FEATURES=kv.features is not None,
    )
