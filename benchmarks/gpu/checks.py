"""Kernels compared with torch on a device, at larger sizes than the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from llamahome.attention.kernels import (
    Implementation,
    KVRecord,
    chunk_attend,
    compact,
    decode_attend,
)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DIMS = (64, 80, 96, 128)
PER_GROUP = (1, 3, 8)


def check_kernels(
    device: str,
    *,
    implementation: Implementation = "triton",
    capacity: int = 1000,
    compactions: int = 100,
) -> dict[str, float]:
    """Return each kernel's largest difference from torch in float32, over all shapes and dtypes.

    Raises:
        AssertionError: for a difference beyond the tolerance of its dtype.
    """
    worst = {"decode": 0.0, "decode_mass": 0.0, "chunk": 0.0, "chunk_mass": 0.0, "compact": 0.0}
    for dtype, tolerance in TOLERANCE.items():
        for dim in DIMS:
            for per_group in PER_GROUP:
                for name, difference in _attention(
                    device, implementation, capacity, dtype, dim, per_group
                ).items():
                    assert difference <= tolerance, (name, dtype, dim, per_group, difference)
                    worst[name] = max(worst[name], difference)
    for seed in range(compactions):
        # Moving in place is exact unless there is a race, which shows only now and then.
        difference = _compaction(device, implementation, capacity, DIMS[seed % 4], seed)
        assert difference == 0, ("compact", seed, difference)
    return worst


def _attention(
    device: str,
    implementation: Implementation,
    capacity: int,
    dtype: torch.dtype,
    dim: int,
    per_group: int,
) -> dict[str, float]:
    groups, queries, slots = 2, 64, 4
    generator = torch.Generator(device).manual_seed(dim + per_group)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    keys, values = (normal(slots, groups, capacity, dim) for _ in range(2))
    rows = torch.tensor([2, 0], device=device)
    held = torch.tensor([capacity - queries, 17], device=device)
    differences = {}
    for name, length in (("decode", 1), ("chunk", queries)):
        query = normal(2, length, groups * per_group, dim).transpose(1, 2)
        weights = torch.rand(2, length, generator=generator, device=device)
        outputs = []
        for exact in (False, True):
            q, k, v = (t.float() if exact else t for t in (query, keys, values))
            kv = _record(k, v)
            chosen: Implementation = "torch" if exact else implementation
            if name == "decode":
                out = decode_attend(
                    q,
                    kv,
                    rows,
                    held,
                    dim**-0.5,
                    weights=weights[:, 0].contiguous(),
                    group="max",
                    implementation=chosen,
                )
            else:
                out = chunk_attend(
                    q,
                    kv,
                    rows,
                    held,
                    torch.full_like(held, length),
                    dim**-0.5,
                    weights=weights,
                    implementation=chosen,
                )
            outputs.append((out.float(), kv.mass))
        (out, mass), (expected, expected_mass) = outputs
        differences[name] = float((out - expected).abs().max())
        differences[f"{name}_mass"] = float((mass - expected_mass).abs().max())
    return differences


def _compaction(
    device: str, implementation: Implementation, capacity: int, dim: int, seed: int
) -> float:
    generator = torch.Generator(device).manual_seed(seed)
    kept = capacity - 64 if capacity > 64 else capacity // 2
    rows = torch.tensor([1, 3], device=device)
    drawn = torch.rand(2, 8, capacity, generator=generator, device=device)
    index = drawn.argsort(dim=-1)[..., :kept].sort(dim=-1).values
    shape = (4, 8, capacity, dim)
    kv = _record(
        *(torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(2))
    )
    kv.mass.uniform_(generator=generator)
    worst = 0.0
    expected = KVRecord(**{name: column.clone() for name, column in kv.columns.items()})
    compact(kv, rows, index, implementation=implementation)
    compact(expected, rows, index, implementation="torch")
    for moved, same in zip(kv.columns.values(), expected.columns.values(), strict=True):
        difference = moved[:, :, :kept].double() - same[:, :, :kept].double()
        worst = max(worst, float(difference.abs().max()))
    return worst


def _record(keys: Tensor, values: Tensor) -> KVRecord:
    """Wrap keys and values (slots, G, C, D), with mass 0 and features at random."""
    size = keys.shape[:3]
    return KVRecord(
        keys=keys,
        values=values,
        mass=torch.zeros(size, device=keys.device),
        positions=torch.arange(size[2], device=keys.device).expand(size).clone(),
        features=torch.rand(size, device=keys.device),
    )
