"""What every engine under measurement speaks: one JSON object a line, in and out.

Asked {"cmd": "load" | "prefill" | "fill" | "decode" | "drop", ...}, an engine answers with one
object, to which its peak memory during that command is added. Imports nothing but Python's own, as
each peer lives in an environment of its own. A peer that fails ends, with the error on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2  # untimed steps before the timed ones: the others have used the caches since

Reply = dict[str, Any]


class Measured(Protocol):
    """An engine under measurement. Prompts are token ids; the same for everyone."""

    def prefill(self, prompt: list[int]) -> Reply:
        """Read a prompt that is not known yet: {"seconds"} until its next token is there."""

    def fill(self, prompts: list[list[int]]) -> Reply:
        """Take as many requests as prompts to the point where all of them decode: {"kv_bytes"}."""

    def decode(self, max_steps: int, seconds: float) -> Reply:
        """{"steps"}: seconds of each step, which gives every request one token."""

    def drop(self) -> Reply:
        """Forget the requests and their caches."""


def serve(load: Callable[..., Measured]) -> None:
    """Answer until stdin ends. The first command is `load`, its arguments are the engine's own."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not lie between the replies
    engine: Measured | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked.pop("cmd")
        reset_peak()
        if name == "load":
            engine, reply = load(**asked), {}
        else:
            reply = dict(getattr(engine, name)(**asked))
        reply["peak_mib"] = peak_mib()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def timed_steps(step: Callable[[], object], max_steps: int, seconds: float) -> list[float]:
    """Seconds of each step, until there are enough steps or they took long enough."""
    for _ in range(WARM_UP):
        step()
    took: list[float] = []
    while len(took) < max_steps and (len(took) < 3 or sum(took) < seconds):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return took


def reset_peak() -> None:
    """Start the high-water mark of resident memory anew (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Resident memory at its largest since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
