"""What a step costs whose rows bring drafts, beside one of a single token each."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a step, in steps of one token for as many rows: median and quartiles of the rounds."""

    median: float
    quartiles: tuple[float, float]


def step_costs(
    runner: Runner, steps: Iterable[Widths], ids: Sequence[int], rounds: int
) -> dict[Widths, Cost]:
    """Each step in each round, a step of one token right before it.

    Slots are as long before each as they were filled. Only the mass of their keys grows, which
    takes no time of its own.
    """
    # By rows, since what many of them leave in the processor's caches slows a single one.
    different = sorted(set(steps), key=lambda widths: (len(widths), widths))
    ratios: dict[Widths, list[float]] = {widths: [] for widths in different}
    for turn in range(rounds + 1):
        for widths, own in ratios.items():
            one = _seconds(runner, (1,) * len(widths), ids)
            ratio = _seconds(runner, widths, ids) / one
            if turn > 0:  # the first warms up
                own.append(ratio)
    return {widths: _cost(own) for widths, own in ratios.items()}


def _seconds(runner: Runner, widths: Widths, ids: Sequence[int]) -> float:
    lengths = list(runner.slots.lengths)
    rows = [_row(slot, ids[:width]) for slot, width in enumerate(widths)]
    started = time.perf_counter()
    runner.forward(rows)
    seconds = time.perf_counter() - started
    runner.slots.lengths[:] = lengths
    return seconds


def _cost(ratios: Sequence[float]) -> Cost:
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Cost(median=median, quartiles=(low, high))


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
