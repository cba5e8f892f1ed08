"""The mix: groups of long prompts and single short ones, which arrive at random."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine.load import Timeline, arrivals, percentile
from benchmarks.workload import cut


@dataclass(frozen=True, kw_only=True)
class Form:
    """Requests of the mix.

    Attributes:
        groups: arrivals of `together` long prompts.
        long_tokens, short_tokens: of the prompts; short ones have up to half less.
        long_answer, short_answer: tokens of an answer.
        long_share, short_share: of the time, what requests of each kind would take alone.
        idle: requests of each kind that are measured alone.
    """

    groups: int = 4
    together: int = 3
    long_tokens: int = 4850
    short_tokens: int = 160
    long_answer: int = 16
    short_answer: int = 48
    long_share: float = 0.6
    short_share: float = 0.1
    idle: int = 8
    seed: int = 0


QUICK = Form(groups=3, long_tokens=2400)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    at: float
    prompt: list[int]
    answer: int
    long: bool


def alone(form: Form, ids: Sequence[int], *, long: bool) -> list[Arrival]:
    """Return requests of one kind, to be measured one after another."""
    if long:
        prompts = [cut(ids, form.long_tokens, 500 + n) for n in range(form.idle // 4)]
        return [Arrival(at=0.0, prompt=own, answer=form.long_answer, long=True) for own in prompts]
    drawn = random.Random(form.seed + 1)
    return [_short(form, ids, drawn, 1000 + n, 0.0) for n in range(form.idle)]


def mix(form: Form, ids: Sequence[int], *, long_s: float, short_s: float) -> list[Arrival]:
    """Return the arrivals, in order.

    Args:
        ids: the text that prompts are cut from; no two begin at the same place.
        long_s: seconds to the first token of a long prompt alone, which sets their rate.
        short_s: seconds that a short request takes alone.
    """
    drawn = random.Random(form.seed)
    group_s = form.together * long_s
    groups = arrivals(form.groups, form.long_share / group_s, form.seed)
    longs = [
        Arrival(at=at, prompt=cut(ids, form.long_tokens, n), answer=form.long_answer, long=True)
        for n, at in enumerate(at for at in groups for _ in range(form.together))
    ]
    # Shorts end about when the last group has been read.
    rate, until = form.short_share / short_s, groups[-1] + group_s
    times = arrivals(max(8, round(rate * until)), rate, form.seed + 2)
    shorts = [_short(form, ids, drawn, 2000 + n, at) for n, at in enumerate(times)]
    return sorted([*longs, *shorts], key=lambda arrival: arrival.at)


def _short(form: Form, ids: Sequence[int], drawn: random.Random, number: int, at: float) -> Arrival:
    length = drawn.randint(form.short_tokens // 2, form.short_tokens)
    prompt = cut(ids, length, number)
    return Arrival(at=at, prompt=prompt, answer=form.short_answer, long=False)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Latencies of one run, in seconds, and prompt tokens per second while any prompt waited."""

    short_ttft: float
    short_ttft_p99: float
    short_tpot: float
    short_tpot_p99: float
    long_ttft: float
    long_tpot: float
    prefill: float


def figures(mixed: Sequence[Arrival], lines: Sequence[Timeline]) -> Figures:
    shorts = [line for own, line in zip(mixed, lines, strict=True) if not own.long]
    longs = [line for own, line in zip(mixed, lines, strict=True) if own.long]
    return Figures(
        short_ttft=statistics.mean(line.ttft for line in shorts),
        short_ttft_p99=percentile([line.ttft for line in shorts], 99),
        short_tpot=statistics.mean(line.tpot for line in shorts),
        short_tpot_p99=percentile([line.tpot for line in shorts], 99),
        long_ttft=statistics.mean(line.ttft for line in longs),
        long_tpot=statistics.mean(line.tpot for line in longs),
        prefill=sum(len(own.prompt) for own in mixed) / waiting_s(lines),
    )


def waiting_s(lines: Sequence[Timeline]) -> float:
    """Return the seconds in which at least one request waited for its first token."""
    total, end = 0.0, 0.0
    for line in sorted(lines, key=lambda line: line.arrived):
        first = line.tokens[0]
        total += max(0.0, first - max(line.arrived, end))
        end = max(end, first)
    return total
