"""What a step costs whose rows bring drafts, beside one of a single token each."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.speculation_lookup import Widths
from llamahome.attention import build_policy
from llamahome.config import PolicyConfig
from llamahome.engine.runner import RowInput, Runner


def fill(runner: Runner, ids: Sequence[int], length: int, policy: PolicyConfig) -> None:
    """The same `length` tokens, whole chunks of them, into every slot."""
    slots = runner.slots
    for slot in range(slots.num_slots):
        slots.reset(slot, policy=build_policy(policy), budget=policy.budget)
    while (at := slots.lengths[0]) < length:
        runner.forward([RowInput(slot=0, tokens=ids[at : at + slots.room(0)])])
    state = slots.save(0)
    for slot in range(1, slots.num_slots):
        slots.restore(slot, state)


def step_costs(
    runner: Runner, steps: Iterable[Widths], ids: Sequence[int], rounds: int
) -> dict[Widths, float]:
    """What steps cost in steps of one token for as many rows: the median of the rounds.

    Every step is measured in every round, from slots that are as long as before. Only the mass of
    their keys grows, which takes no time of its own.
    """
    lengths = list(runner.slots.lengths)
    different = set(steps)
    different |= {(1,) * len(widths) for widths in different}
    seconds: dict[Widths, list[float]] = {widths: [] for widths in sorted(different)}
    for turn in range(rounds + 1):
        for widths, own in seconds.items():
            rows = [_row(slot, ids[:width]) for slot, width in enumerate(widths)]
            started = time.perf_counter()
            runner.forward(rows)
            if turn > 0:  # the first warms up
                own.append(time.perf_counter() - started)
            runner.slots.lengths[:] = lengths
    return {
        widths: statistics.median(
            a / b for a, b in zip(own, seconds[(1,) * len(widths)], strict=True)
        )
        for widths, own in seconds.items()
    }


def _row(slot: int, tokens: Sequence[int]) -> RowInput:
    """Every token of a draft needs its logits."""
    return RowInput(slot=slot, tokens=tokens, every="logits" if len(tokens) > 1 else None)


class OthersShare:
    """Of the machine's time, what other processes took since; Linux alone says it."""

    def __init__(self) -> None:
        self._began = _cpu_seconds()

    @property
    def value(self) -> float:
        pairs = zip(self._began, _cpu_seconds(), strict=True)
        busy, own, whole = (after - before for before, after in pairs)
        return max(0.0, busy - own) / whole


def _cpu_seconds() -> tuple[float, float, float]:
    """Of all processes, of this one, and those that there were."""
    ticks = [int(t) for t in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    own = os.times()
    second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / second, own.user + own.system, sum(ticks) / second
