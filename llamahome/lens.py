"""Frames of the memory lens: which tokens a request's KV heads hold. Standard library only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class LensFrame:
    """The tokens that each KV head of a request holds at one moment.

    Attributes:
        length: tokens that went through the cache.
        layers, heads: layers of the model, and KV heads of each.
        kept: bits, 1 for a token that is held, compressed by zlib: a row of ceil(length / 8) bytes
            for each head of each layer in turn, the first token in the lowest bit.
        start: place in the request of the first of `ids`.
        ids: tokens that no earlier frame had. The last of an answer never enters the cache.
        texts: what they are for a reader; empty where nobody has a tokenizer.
        token_bytes: bytes of one token's keys and values in all heads.
    """

    length: int
    layers: int
    heads: int
    kept: bytes
    start: int
    ids: tuple[int, ...]
    texts: tuple[str, ...] = ()
    token_bytes: int

    def held(self, layer: int, head: int) -> list[int]:
        """Return the places of the tokens that a KV head holds, in order."""
        width = -(-self.length // 8)
        first = (layer * self.heads + head) * width
        row = zlib.decompress(self.kept)[first : first + width]
        return [place for place in range(self.length) if row[place // 8] >> place % 8 & 1]


def joined(frames: Sequence[LensFrame]) -> LensFrame | None:
    """Return successive frames of one request as the last of them, with the tokens of all."""
    if not frames:
        return None
    return replace(
        frames[-1],
        start=frames[0].start,
        ids=tuple(token for frame in frames for token in frame.ids),
        texts=tuple(text for frame in frames for text in frame.texts),
    )


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The KV cache that an engine gives each request.

    Attributes:
        policy: name of the policy that is served.
        budgets: the different budgets of KV heads that evict, the least first.
        kv_budgets: least and largest `kv_budget` that a request may ask for.
        interval: tokens between two evictions.
        layers, heads: layers of the model, and KV heads of each.
        slot_bytes: bytes of one request's slot.
        token_bytes: bytes of one token's keys and values in all heads.
    """

    policy: str
    budgets: tuple[int, ...]
    kv_budgets: tuple[int, int]
    interval: int
    layers: int
    heads: int
    slot_bytes: int
    token_bytes: int
