"""Small states and digests to keep them under."""

from __future__ import annotations

from pathlib import Path

import torch

from llamahome.cache import SlotState, chain, root_digest
from llamahome.cache.snapshots.folder import SnapshotFolder

INTERVAL = 4
ROOT = root_digest("model", "adapter", "policy", 4)


def state(length: int = 4, *, seed: int = 0, floats: int = 64) -> SlotState:
    """Return a state with 4 bytes for each of `floats`, and 16 bytes of positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(floats, generator=generator)
    return SlotState(length, 2, {"keys": keys, "positions": torch.tensor([length, seed])})


SIZE = state().nbytes


def digest(number: int) -> bytes:
    return root_digest(str(number))


def prompt(*parts: str) -> list[bytes]:
    """Return a chain with a chunk for every letter."""
    return chain(ROOT, [ord(letter) for letter in "".join(parts) for _ in range(4)], INTERVAL)


def equal(one: SlotState | None, other: SlotState) -> bool:
    if one is None or (one.length, one.sink) != (other.length, other.sink):
        return False
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def folder(path: Path, max_bytes: int = 2**20) -> SnapshotFolder:
    return SnapshotFolder(path / "snapshots", max_bytes)
