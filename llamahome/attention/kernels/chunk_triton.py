# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
"""Chunk attention in two kernels: one by query, one by key.

The first is flash attention (Dao 2023, "FlashAttention-2", arXiv 2307.08691) that also writes each
query's log-sum-exp. The second goes over a block of keys, computes exp(q . k - lse) of every query
again and adds it up, so the mass is exact, in a fixed order, and no (T, S) matrix is ever in
memory.

Axes: B rows, H query heads, G KV heads, R query heads of a KV head, T queries, C capacity,
S keys of a block, D head_dim (padded to a power of 2), M queries of a block, of all R heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamahome.attention.kernels.implementation import check_attention
from llamahome.attention.kernels.record import KVRecord

LOG2E = 1.4426950408889634


@triton.jit
def _attend_queries(
    query_ptr,
    keys_ptr,
    slots_ptr,
    held_ptr,
    tokens_ptr,
    values_ptr,
    out_ptr,
    lse_ptr,
    query_stride_b,
    query_stride_h,
    query_stride_t,
    keys_stride_slot,
    keys_stride_g,
    keys_stride_c,
    values_stride_slot,
    values_stride_g,
    values_stride_c,
    scale,
    H,
    T,
    R: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    block = tl.program_id(2)
    slot = tl.load(slots_ptr + row)
    held = tl.load(held_ptr + row).to(tl.int32)
    end = held + tl.load(tokens_ptr + row).to(tl.int32)

    # The queries of all heads of the group in one row, so that they share the keys they load.
    lanes = block * BLOCK_M + tl.arange(0, BLOCK_M)
    real = lanes < R * T
    query_heads = head * R + lanes // T
    offsets = lanes % T
    dims = tl.arange(0, PADDED_D)
    real_dim = dims < D
    query = tl.load(
        query_ptr
        + row * query_stride_b
        + (query_heads * query_stride_h + offsets * query_stride_t)[:, None]
        + dims[None, :],
        mask=real[:, None] & real_dim[None, :],
        other=0.0,
    )
    keys_base = keys_ptr + slot * keys_stride_slot + head * keys_stride_g
    values_base = values_ptr + slot * values_stride_slot + head * values_stride_g

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, PADDED_D], tl.float32)
    # Every query sees the first block's first key, so `top` is finite from there on.
    for first in range(0, end, BLOCK_S):
        places = first + tl.arange(0, BLOCK_S)
        written = places < end
        tile = written[:, None] & real_dim[None, :]
        key = tl.load(
            keys_base + places[:, None] * keys_stride_c + dims[None, :], mask=tile, other=0.0
        ).to(query.dtype)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        visible = written[None, :] & (places[None, :] <= (held + offsets)[:, None])
        logits = tl.where(visible, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        probs = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(probs, 1)
        value = tl.load(
            values_base + places[:, None] * values_stride_c + dims[None, :], mask=tile, other=0.0
        ).to(query.dtype)
        out = out * shrink[:, None]
        out += tl.dot(probs.to(query.dtype), value, input_precision="ieee")
        top = higher
    at = (row * H + query_heads) * T + offsets
    tl.store(lse_ptr + at, top + tl.log2(total), mask=real)
    tl.store(
        out_ptr + at[:, None] * D + dims[None, :],
        (out / total[:, None]).to(out_ptr.dtype.element_ty),
        mask=real[:, None] & real_dim[None, :],
    )


@triton.jit
def _add_mass(
    query_ptr,
    keys_ptr,
    slots_ptr,
    held_ptr,
    tokens_ptr,
    lse_ptr,
    mass_ptr,
    weights_ptr,
    query_stride_b,
    query_stride_h,
    query_stride_t,
    keys_stride_slot,
    keys_stride_g,
    keys_stride_c,
    scale,
    H,
    G,
    C,
    T,
    R: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    GROUP_MAX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    held = tl.load(held_ptr + row).to(tl.int32)
    tokens = tl.load(tokens_ptr + row).to(tl.int32)
    places = tl.program_id(2) * BLOCK_S + tl.arange(0, BLOCK_S)
    written = places < held + tokens
    dims = tl.arange(0, PADDED_D)
    real_dim = dims < D
    key = tl.load(
        keys_ptr
        + slot * keys_stride_slot
        + head * keys_stride_g
        + places[:, None] * keys_stride_c
        + dims[None, :],
        mask=written[:, None] & real_dim[None, :],
        other=0.0,
    ).to(query_ptr.dtype.element_ty)
    turned = tl.trans(key)

    gained = tl.zeros([BLOCK_S], tl.float32)
    # A block with nothing written has no queries to ask.
    last = tl.where(tl.program_id(2) * BLOCK_S < held + tokens, tokens, 0)
    for first in range(0, last, BLOCK_T):
        offsets = first + tl.arange(0, BLOCK_T)
        real = offsets < tokens
        weights = tl.load(weights_ptr + row * T + offsets, mask=real, other=0.0)
        visible = real[:, None] & written[None, :] & (places[None, :] <= (held + offsets)[:, None])
        received = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
        for in_group in range(R):
            query_head = head * R + in_group
            query = tl.load(
                query_ptr
                + row * query_stride_b
                + query_head * query_stride_h
                + offsets[:, None] * query_stride_t
                + dims[None, :],
                mask=real[:, None] & real_dim[None, :],
                other=0.0,
            )
            lse = tl.load(lse_ptr + (row * H + query_head) * T + offsets, mask=real, other=0.0)
            logits = tl.dot(query, turned, input_precision="ieee") * scale
            probs = tl.where(visible, tl.exp2(logits - lse[:, None]), 0.0)
            if GROUP_MAX:
                received = tl.maximum(received, probs)
            else:
                received += probs
        gained += tl.sum(received * weights[:, None], 0)
    at = mass_ptr + (slot * G + head) * C + places
    tl.store(at, tl.load(at, mask=written, other=0.0) + gained, mask=written)


def chunk_attend_triton(
    query: Tensor,
    kv: KVRecord,
    slots: Tensor,
    held: Tensor,
    tokens: Tensor,
    scaling: float,
    weights: Tensor | None,
    *,
    group_max: bool,
) -> Tensor:
    """Attend in Triton; the arguments are those of `chunk_attend`.

    Raises:
        ValueError: for a layout or dtype that the kernels cannot read.
    """
    keys, values = kv.keys, kv.values
    mass = check_attention(query, kv, weights, slots=slots, held=held, tokens=tokens)
    asked = (query, keys, slots, held, tokens)
    strides = (*query.stride()[:3], *keys.stride()[:3])
    batch, heads, queries, dim = query.shape
    groups, capacity = keys.shape[1], keys.shape[2]
    per_group = heads // groups
    # In 32 bits tiles of 64 would not fit the registers and shared memory of a multiprocessor.
    block = 32 if query.element_size() == 4 else 64
    lanes = min(block, max(16, triton.next_power_of_2(per_group * queries)))
    out = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    shape = {"R": per_group, "D": dim, "PADDED_D": triton.next_power_of_2(dim), "BLOCK_S": block}
    _attend_queries[(batch, groups, triton.cdiv(per_group * queries, lanes))](
        *asked,
        values,
        out,
        lse,
        *strides,
        *values.stride()[:3],
        scaling * LOG2E,
        heads,
        queries,
        BLOCK_M=lanes,
        num_stages=2,  # a third would not fit the 99 KiB of shared memory of smaller GPUs
        **shape,
    )
    if mass is not None:
        _add_mass[(batch, groups, triton.cdiv(capacity, block))](
            *asked,
            lse,
            mass,
            weights,
            *strides,
            scaling * LOG2E,
            heads,
            groups,
            capacity,
            queries,
            BLOCK_T=min(block, max(16, triton.next_power_of_2(queries))),
            GROUP_MAX=group_max,
            **shape,
        )
    return out
