"""KV bytes of one sequence, reported with every figure."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.cache import Slots
from llamahome.engine import Usage


@dataclass(frozen=True, kw_only=True)
class KVBytes:
    """KV bytes of one sequence.

    Attributes:
        peak: allocated for it, mass and positions included; no step takes more.
        final: keys and values held at its end.
        dense: keys and values of all its tokens.
    """

    peak: int
    final: int
    dense: int


def read_bytes(slots: Slots) -> KVBytes:
    """Return the bytes of the text that slot 0 holds."""
    return KVBytes(
        peak=slots.slot_nbytes,
        final=slots.dense_nbytes(slots.held(0)),
        dense=slots.dense_nbytes(slots.lengths[0]),
    )


def answered_bytes(usage: Usage) -> KVBytes:
    """Return the bytes of an answered request; its last token was never read."""
    per_token = usage.kv_bytes_dense // (usage.prompt_tokens + usage.completion_tokens)
    return KVBytes(
        peak=usage.kv_bytes,
        final=per_token * usage.kept_tokens,
        dense=per_token * (usage.kept_tokens + usage.evicted_tokens),
    )
