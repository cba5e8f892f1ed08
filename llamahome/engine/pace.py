"""The pace of reading: how much of the prompts a step may hold, by the times that steps took."""

from __future__ import annotations

from collections import deque

WINDOW = 8  # times that are kept of each kind of step
FRESH = 64  # steps after which a kind of step is measured again
LONGEST_PAUSE = 64  # steps without prompt tokens, at most, while a prompt is being read


class Pace:
    """Shares the time of steps between decoding and reading prompts. It has no clock of its own.

    While requests decode, a chunk of a prompt may take many times what decoding takes. A chunk is
    never split, since rounding, and so an answer, would depend on the load. So chunks are spread:
    each step with one may overdraw the time, and steps that decode alone pay for it, until the mean
    is back at `slowdown` times the time of decoding alone. That time is measured, for each number
    of requests that decode.

    Chunks of several prompts are read in one step where that pays. Of k prompts with n chunks each,
    read one after another in steps of time T(1), the mean wait is n T(1) (k + 1) / 2; in steps of k
    chunks it is n T(k). So T(k) is tried now and then.

    Args:
        slowdown: steps take, on average, at most so many times what their decoding alone takes.
    """

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._decoding = _Times()  # by requests
        self._reading = _Times()  # by chunks
        self._steps = 0
        self._pause = 0  # latest steps that read nothing
        self._credit = 0.0  # seconds that reading may take from decoding; below 0 it has overdrawn

    def chunks(self, decoding: int, ready: int) -> int:
        """Return the chunks that the next step may read.

        Args:
            decoding: requests that decode.
            ready: prompts that have a whole chunk left, as far as a step may hold them.
        """
        alone, together = self._reading.of(1), self._reading.of(ready)
        if decoding:
            due = self._credit >= 0 and self._decoding.is_fresh(decoding, self._steps)
            if not due and self._pause < LONGEST_PAUSE:
                return 0
        elif not self._reading.is_fresh(1, self._steps):
            return 1
        elif not self._reading.is_fresh(ready, self._steps):
            return max(1, ready)
        if alone is None or together is None:
            return 1
        return ready if together < alone * (ready + 1) / 2 else 1

    def took(self, seconds: float, *, decoding: int, reading: bool, chunks: int) -> None:
        """Take in the time of a step.

        Args:
            decoding: requests that decoded.
            reading: whether prompts were read, too.
            chunks: whole chunks, if it read nothing else; else 0.
        """
        self._steps += 1
        if not decoding:
            self._credit = 0.0  # nobody was delayed
            if chunks:
                self._reading.add(chunks, seconds, self._steps)
        elif reading:
            alone = self._decoding.of(decoding) or 0.0
            # A debt that is read into was forgiven, after the longest pause.
            self._credit = max(self._credit, 0.0) + self._slowdown * alone - seconds
        else:
            self._decoding.add(decoding, seconds, self._steps)
            alone = self._decoding.of(decoding) or 0.0
            surplus = self._slowdown - 1
            self._credit = min(self._credit + surplus * seconds, surplus * alone)
        self._pause = 0 if reading else self._pause + 1


class _Times:
    """Times of the latest steps of each kind; a kind is a number."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._measured: dict[int, int] = {}

    def add(self, kind: int, seconds: float, step: int) -> None:
        self._seconds.setdefault(kind, deque(maxlen=WINDOW)).append(seconds)
        self._measured[kind] = step

    def of(self, kind: int) -> float | None:
        """Return the lower quartile: what disturbs a step makes it longer, never shorter."""
        ranked = sorted(self._seconds.get(kind, ()))
        return ranked[len(ranked) // 4] if ranked else None

    def is_fresh(self, kind: int, step: int) -> bool:
        """Tell whether a kind was measured in the latest `FRESH` steps."""
        return kind in self._measured and step - self._measured[kind] < FRESH
