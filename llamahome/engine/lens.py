"""The memory lens: frames that show which tokens a request's KV heads hold, read from its slot."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

import numpy as np

from llamahome.cache import Slots
from llamahome.lens import LensFrame

# A request's frames are so far apart, since eyes need no more.
PERIOD_S = 0.25
# Frames of all requests take at most this share of an engine's time, the first and last ones apart.
SHARE = 0.02
FASTEST = 1  # zlib's level


class FramePace:
    """The time that an engine may spend on frames."""

    def __init__(self) -> None:
        self._next = 0.0

    @property
    def free(self) -> bool:
        return time.monotonic() >= self._next

    def spent(self, seconds: float) -> None:
        self._next = time.monotonic() + seconds / SHARE


class Lens:
    """The frames of one request: one is due with its first token, and one at its end."""

    def __init__(self, pace: FramePace) -> None:
        self._pace = pace
        self._next = 0.0
        self._sent = 0

    def due(self, *, final: bool) -> bool:
        """Return whether a step is to make a frame; `final` says that it is the answer's last."""
        if final or self._next == 0:
            return True
        return time.monotonic() >= self._next and self._pace.free

    def frame(self, tokens: Sequence[int], slots: Slots, slot: int) -> LensFrame:
        """Return what each KV head of a slot holds, and those of `tokens` that are new."""
        began = time.monotonic()
        start, self._sent = self._sent, len(tokens)
        shape = slots.model_shape
        made = LensFrame(
            length=slots.lengths[slot],
            layers=shape.num_layers,
            heads=shape.num_kv_heads,
            kept=zlib.compress(kept_bits(slots, slot), FASTEST),
            start=start,
            ids=tuple(tokens[start:]),
            token_bytes=slots.dense_nbytes(1),
        )
        self._next = began + PERIOD_S
        self._pace.spent(time.monotonic() - began)
        return made


def kept_bits(slots: Slots, slot: int) -> bytes:
    """Return the bits of `LensFrame.kept`, from the positions that the slot's entries have."""
    length, shape = slots.lengths[slot], slots.model_shape
    kept = np.zeros((shape.num_layers, shape.num_kv_heads, length), dtype=bool)
    for plane in slots.planes:
        held = slots.policy_of(slot, plane).held(length)
        positions = plane.kv.positions[slot, :, :held].cpu().numpy()
        for head, own in zip(plane.heads, positions, strict=True):
            kept[plane.shape.layer_idx, head, own] = True
    return np.packbits(kept, axis=-1, bitorder="little").tobytes()
