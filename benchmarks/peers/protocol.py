"""Protocol of an engine under measurement: one JSON object a line, in and out.

A command is {"cmd": "load" | "prefill" | "fill" | "decode" | "drop", ...}; the reply is one object,
with the peak memory during that command. The file imports the standard library only, since each
peer runs in an environment of its own. A peer that fails ends, with the error on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2  # untimed steps before the timed ones: other engines have used the CPU caches since

Reply = dict[str, Any]


class Measured(Protocol):
    """An engine under measurement. Prompts are token ids, the same for all engines."""

    def prefill(self, prompt: list[int]) -> Reply:
        """Read a new prompt; return {"seconds"} until its next token is known."""

    def fill(self, prompts: list[list[int]]) -> Reply:
        """Read a prompt for each request, until all of them decode; return {"kv_bytes"}."""

    def decode(self, max_steps: int, seconds: float) -> Reply:
        """Return {"steps"}: seconds of each step, which gives every request one token."""

    def drop(self) -> Reply:
        """Forget the requests and their caches."""


def serve(load: Callable[..., Measured]) -> None:
    """Answer until stdin ends. The first command is `load`, with the arguments of `load` here."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing that a library prints comes between the replies
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
    """Return the seconds of each step, until there are `max_steps` or they took `seconds`."""
    for _ in range(WARM_UP):
        step()
    took: list[float] = []
    while len(took) < max_steps and (len(took) < 3 or sum(took) < seconds):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return took


def reset_peak() -> None:
    """Reset the peak of resident memory (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the peak of resident memory since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
