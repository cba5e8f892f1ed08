"""KV bytes, told beside every figure."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.cache import Slots


@dataclass(frozen=True, kw_only=True)
class KVBytes:
    """Of one sequence.

    Attributes:
        peak: allocated for it, mass and positions included; no step takes more.
        final: keys and values held at its end.
        dense: keys and values of all its tokens.
    """

    peak: int
    final: int
    dense: int


def kv_bytes(slots: Slots, row: int = 0) -> KVBytes:
    """What the sequence in a slot takes by now."""
    length = slots.lengths[row]
    return KVBytes(
        peak=slots.slot_nbytes,
        final=slots.dense_nbytes(slots.held(row)),
        dense=slots.dense_nbytes(length),
    )
