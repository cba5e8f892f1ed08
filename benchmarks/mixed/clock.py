"""A clock that other programs on the machine do not disturb."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def cpu_clock() -> Iterator[None]:
    """Let `time.perf_counter` count CPU seconds of this process, and sleep take no real time.

    That is the time which one thread would take if it were alone, but for the caches.
    """
    slept = 0.0

    def now() -> float:
        return time.process_time() + slept

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    with mock.patch.multiple(time, perf_counter=now, sleep=sleep):
        yield
