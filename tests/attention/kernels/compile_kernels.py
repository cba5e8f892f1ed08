"""Compiles every kernel to machine code for GPUs, without one.

    python -m tests.attention.kernels.compile_kernels

A kernel that such a GPU could not run is an error. Triton must not interpret.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llamahome.attention.kernels import append_triton, chunk_triton, compact_triton, decode_triton

# Shared memory that one block may take, in bytes: CUDA C++ Programming Guide, compute capabilities.
SHARED = {86: 99 * 1024, 90: 227 * 1024}
INTEGERS = ("slots_ptr", "counts_ptr", "held_ptr", "tokens_ptr", "places_ptr", "index_ptr")
STORED = ("query_ptr", "keys_ptr", "values_ptr", "out_ptr", "key_ptr", "value_ptr")


def _type(name: str, dtype: str) -> str:
    if name in (*INTEGERS, "position_ptr", "positions_ptr"):
        return "*i64"
    if name in STORED:
        return f"*{dtype}"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name == "scale" else "i32"


def compile_for(kernel: Any, capability: int, dtype: str, **constants: Any) -> None:
    """Compile one kernel, and check that its shared memory fits."""
    names = kernel.arg_names
    chosen = {name: constants[name] for name in names if name in constants}
    signature = {n: "constexpr" if n in chosen else _type(n, dtype) for n in names}
    places = {(names.index(name),): value for name, value in chosen.items()}
    # At a launch tensors and their strides are aligned; only then copies are pipelined and take
    # shared memory.
    aligned = [n for n in names if n.endswith("_ptr") or "stride" in n]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    stages = 2 if kernel is chunk_triton._attend_queries else 3
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_stages": stages}
    )
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED[capability], (kernel, dtype, compiled.metadata.shared)


def main() -> None:
    for capability, dtype, dim in (
        (86, "fp16", 128),
        (90, "bf16", 80),
    ):
        padded = triton.next_power_of_2(dim)
        shape = {"R": 3, "D": dim, "PADDED_D": padded, "BLOCK_S": 64, "SPLITS": 8}
        shape |= {"WITH_MASS": True, "GROUP_MAX": True, "M": 16, "PADDED_R": 4, "PROGRAMS": 8}
        shape |= {"BLOCK_M": 64, "BLOCK_T": 64, "BLOCK": 64, "SLICE": 32, "SLICES": 4}
        shape["WITH_FEATURES"] = True
        for kernel in (
            decode_triton._attend_split,
            decode_triton._merge_splits,
            chunk_triton._attend_queries,
            chunk_triton._add_mass,
            compact_triton._compact,
            append_triton._append,
        ):
            compile_for(kernel, capability, dtype, **shape)


if __name__ == "__main__":
    main()
