"""Latency under load: requests arrive at random while the engine steps in real time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from llamahome.engine import Engine, SamplingParams


@dataclass(frozen=True, kw_only=True)
class LoadShape:
    """Requests of a load, and the engine that they meet.

    Attributes:
        slots: slots of the engine.
        longest: tokens of the longest prompt.
        answer: tokens of every answer.
        utilisation: arrivals per second, as a share of the requests per second that the engine
            answers when all wait at once.
        seed: draws the arrivals.
    """

    slots: int = 8
    longest: int = 1024
    answer: int = 48
    utilisation: float = 0.7
    seed: int = 0


@dataclass(kw_only=True)
class Timeline:
    """Times of one request: its arrival and each of its tokens, in seconds on one clock."""

    arrived: float
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Time to first token, including the wait in the queue."""
        return self.tokens[0] - self.arrived

    @property
    def tpot(self) -> float:
        """Time per output token after the first."""
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latencies under Poisson arrivals, in seconds.

    Attributes:
        capacity: requests answered per second when all wait at once.
        rate: arrivals per second.
    """

    requests: int
    capacity: float
    rate: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float


def poisson_load(engine: Engine, prompts: Sequence[list[int]], shape: LoadShape) -> Latency:
    """Submit half of the prompts at once to find the capacity, then the others at a share of it.

    No prompt may occur twice, since its snapshot would spare the second prefill.
    """
    half = len(prompts) // 2
    burst = replay(engine, prompts[:half], [0.0] * half, [shape.answer] * half)
    capacity = half / max(own.tokens[-1] for own in burst)
    rate = shape.utilisation * capacity
    times = arrivals(len(prompts) - half, rate, shape.seed)
    own = replay(engine, prompts[half:], times, [shape.answer] * len(times))
    ttft, tpot = [t.ttft for t in own], [t.tpot for t in own]
    return Latency(
        requests=len(own),
        capacity=capacity,
        rate=rate,
        ttft_p50=percentile(ttft, 50),
        ttft_p99=percentile(ttft, 99),
        tpot_p50=percentile(tpot, 50),
        tpot_p99=percentile(tpot, 99),
    )


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return `count` arrival times in seconds, a Poisson process of `rate` per second."""
    drawn = random.Random(seed)
    at, times = 0.0, []
    for _ in range(count):
        at += drawn.expovariate(rate)
        times.append(at)
    return times


def replay(
    engine: Engine, prompts: Sequence[list[int]], times: Sequence[float], answers: Sequence[int]
) -> list[Timeline]:
    """Submit prompt i at `times[i]` and step until each answer has its `answers[i]` tokens."""
    lines = [Timeline(arrived=at) for at in times]
    started = time.perf_counter()
    sent = 0
    while sent < len(prompts) or engine.has_work:
        now = time.perf_counter() - started
        while sent < len(prompts) and times[sent] <= now:
            params = SamplingParams(max_tokens=answers[sent], ignore_eos=True)
            engine.submit(str(sent), prompts[sent], params)
            sent += 1
        if not engine.has_work:
            time.sleep(times[sent] - now)
            continue
        deltas = engine.step()
        now = time.perf_counter() - started
        for delta in deltas:
            lines[int(delta.request_id)].tokens.append(now)
    return lines


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate between the two nearest values, as numpy's default does."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)
