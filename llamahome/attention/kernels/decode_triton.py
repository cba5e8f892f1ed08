# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
"""Decode attention in two passes over the splits of a slot: flash-decoding, with the mass.

Dao et al. 2023, "Flash-Decoding for long-context inference". The first pass attends within a split
and keeps each key's logits; the second merges the splits, and with the log-sum-exp of all of
them turns the logits into exact probabilities. Logits take 4 bytes per query head and key, while a
key and its value take 4 * D in 16 bits.

Axes: B rows, H query heads, G KV heads, R query heads of a KV head (padded to M), C capacity,
N splits, S keys of a block, D head_dim (padded to a power of 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamahome.attention.kernels.implementation import check_attention
from llamahome.attention.kernels.record import KVRecord

LOG2E = 1.4426950408889634
FILLING = 512  # programs: enough to fill a GPU of 132 multiprocessors some times over


@triton.jit
def _split_bounds(count, split, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return the bounds of one split: the visible keys in equal numbers of whole blocks."""
    blocks = tl.cdiv(tl.cdiv(count, BLOCK_S), SPLITS)
    start = split * blocks * BLOCK_S
    return start, tl.minimum(start + blocks * BLOCK_S, count)


@triton.jit
def _attend_split(
    query_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    counts_ptr,
    logits_ptr,
    partial_ptr,
    top_ptr,
    total_ptr,
    query_stride_b,
    query_stride_h,
    keys_stride_slot,
    keys_stride_g,
    keys_stride_c,
    values_stride_slot,
    values_stride_g,
    values_stride_c,
    scale,
    H,
    C,
    R: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    WITH_MASS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(slots_ptr + row)
    count = tl.load(counts_ptr + row).to(tl.int32)
    start, end = _split_bounds(count, split, SPLITS, BLOCK_S)

    in_group = tl.arange(0, M)
    dims = tl.arange(0, PADDED_D)
    real_head = in_group < R
    real_dim = dims < D
    query_heads = head * R + in_group
    query = tl.load(
        query_ptr + row * query_stride_b + query_heads[:, None] * query_stride_h + dims[None, :],
        mask=real_head[:, None] & real_dim[None, :],
        other=0.0,
    )
    keys_base = keys_ptr + slot * keys_stride_slot + head * keys_stride_g
    values_base = values_ptr + slot * values_stride_slot + head * values_stride_g

    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    partial = tl.zeros([M, PADDED_D], tl.float32)
    for first in range(start, end, BLOCK_S):
        places = first + tl.arange(0, BLOCK_S)
        seen = places < end
        tile = seen[:, None] & real_dim[None, :]
        key = tl.load(
            keys_base + places[:, None] * keys_stride_c + dims[None, :], mask=tile, other=0.0
        ).to(query.dtype)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        logits = tl.where(seen[None, :], logits, float("-inf"))  # (M, S), in powers of 2
        if WITH_MASS:
            tl.store(
                logits_ptr + (row * H + query_heads[:, None]) * C + places[None, :],
                logits,
                mask=real_head[:, None] & seen[None, :],
            )
        higher = tl.maximum(top, tl.max(logits, 1))
        probs = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(probs, 1)
        value = tl.load(
            values_base + places[:, None] * values_stride_c + dims[None, :], mask=tile, other=0.0
        ).to(query.dtype)
        partial = partial * shrink[:, None]
        partial += tl.dot(probs.to(query.dtype), value, input_precision="ieee")
        top = higher
    at = (row * H + query_heads) * SPLITS + split
    tl.store(top_ptr + at, top, mask=real_head)
    tl.store(total_ptr + at, total, mask=real_head)
    tl.store(
        partial_ptr + at[:, None] * D + dims[None, :],
        partial,
        mask=real_head[:, None] & real_dim[None, :],
    )


@triton.jit
def _merge_splits(
    out_ptr,
    slots_ptr,
    counts_ptr,
    logits_ptr,
    partial_ptr,
    top_ptr,
    total_ptr,
    mass_ptr,
    weights_ptr,
    H,
    G,
    C,
    R: tl.constexpr,
    PADDED_R: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WITH_MASS: tl.constexpr,
    GROUP_MAX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, PADDED_D)
    for one in range(split, R, PROGRAMS):  # the heads of the group are shared out
        query_head = row * H + head * R + one
        one_tops = tl.load(top_ptr + query_head * SPLITS + splits)
        one_shares = tl.exp2(one_tops - tl.max(one_tops, 0))
        one_total = tl.sum(one_shares * tl.load(total_ptr + query_head * SPLITS + splits), 0)
        partials = tl.load(
            partial_ptr + (query_head * SPLITS + splits[:, None]) * D + dims[None, :],
            mask=(dims < D)[None, :],
            other=0.0,
        )
        merged = tl.sum(partials * one_shares[:, None], 0) / one_total
        tl.store(
            out_ptr + query_head * D + dims, merged.to(out_ptr.dtype.element_ty), mask=dims < D
        )

    if WITH_MASS:
        in_group = tl.arange(0, PADDED_R)
        real_head = in_group < R
        query_heads = row * H + head * R + in_group
        at = query_heads[:, None] * SPLITS + splits[None, :]
        tops = tl.load(top_ptr + at, mask=real_head[:, None], other=0.0)  # (R, N)
        totals = tl.load(total_ptr + at, mask=real_head[:, None], other=1.0)
        top = tl.max(tops, 1)
        shares = tl.exp2(tops - top[:, None])
        total = tl.sum(shares * totals, 1)
        slot = tl.load(slots_ptr + row)
        count = tl.load(counts_ptr + row).to(tl.int32)
        weight = tl.load(weights_ptr + row)
        start, end = _split_bounds(count, split, SPLITS, BLOCK_S)
        mass_base = mass_ptr + (slot * G + head) * C
        for first in range(start, end, BLOCK_S):
            places = first + tl.arange(0, BLOCK_S)
            seen = places < end
            logits = tl.load(
                logits_ptr + query_heads[:, None] * C + places[None, :],
                mask=real_head[:, None] & seen[None, :],
                other=float("-inf"),
            )
            probs = tl.exp2(logits - top[:, None]) / total[:, None]
            received = tl.max(probs, 0) if GROUP_MAX else tl.sum(probs, 0)
            held = tl.load(mass_base + places, mask=seen, other=0.0)
            tl.store(mass_base + places, held + weight * received, mask=seen)


def decode_attend_triton(
    query: Tensor,
    kv: KVRecord,
    slots: Tensor,
    counts: Tensor,
    scaling: float,
    weights: Tensor | None,
    *,
    group_max: bool,
) -> Tensor:
    """Attend in Triton; the arguments are those of `decode_attend`.

    Raises:
        ValueError: for a layout or dtype that the kernels cannot read.
    """
    keys, values = kv.keys, kv.values
    mass = check_attention(query, kv, weights, slots=slots, counts=counts)
    batch, heads, _, dim = query.shape
    groups, capacity = keys.shape[1], keys.shape[2]
    per_group = heads // groups
    block = 32 if keys.element_size() == 4 else 64
    splits = _num_splits(batch * groups, triton.cdiv(capacity, block))
    out = query.new_empty(query.shape)
    top = query.new_empty(batch, heads, splits, dtype=torch.float32)
    logits = top.new_empty(batch, heads, capacity if mass is not None else 0)
    partial, total = top.new_empty(*top.shape, dim), torch.empty_like(top)
    between = (slots, counts, logits, partial, top, total)  # read by both passes
    shape = {"R": per_group, "D": dim, "PADDED_D": triton.next_power_of_2(dim)}
    shape |= {"BLOCK_S": block, "SPLITS": splits, "WITH_MASS": mass is not None}
    _attend_split[(batch, groups, splits)](
        query,
        keys,
        values,
        *between,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        scaling * LOG2E,
        heads,
        capacity,
        M=max(16, triton.next_power_of_2(per_group)),  # a tensor core's least number of rows
        **shape,
    )
    programs = splits if mass is not None else min(splits, per_group)
    _merge_splits[(batch, groups, programs)](
        out,
        *between,
        out if mass is None else mass,
        out if weights is None else weights,
        heads,
        groups,
        capacity,
        PADDED_R=triton.next_power_of_2(per_group),
        PROGRAMS=programs,
        GROUP_MAX=group_max,
        **shape,
    )
    return out


def _num_splits(programs: int, blocks: int) -> int:
    """Return a power of 2: enough to fill a GPU, at most one for each block of keys."""
    wanted = max(1, FILLING // programs)
    return int(min(64, triton.next_power_of_2(min(wanted, blocks))))
