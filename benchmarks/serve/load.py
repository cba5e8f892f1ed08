"""The load that every server gets: streams of greedy completions of equal length, all at once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine.load import Timeline
from benchmarks.workload import cut


@dataclass(frozen=True, kw_only=True)
class Form:
    """Requests of one run.

    Attributes:
        streams: requests at once.
        single: requests one after another, in the run of one stream.
        prompt, answer: tokens of each.
        rounds: runs of every server, which take turns.
    """

    streams: int = 32
    single: int = 6
    prompt: int = 96
    answer: int = 96
    rounds: int = 5

    @property
    def length(self) -> int:
        return self.prompt + self.answer + 32

    def prompts(self, ids: Sequence[int], round_: int) -> tuple[list[list[int]], list[list[int]]]:
        """Return the prompts at once and those one by one; no two of all rounds begin the same."""
        count = self.streams + self.single
        own = [cut(ids, self.prompt, round_ * count + n) for n in range(count)]
        return own[: self.streams], own[self.streams :]


QUICK = Form(rounds=3, single=4, answer=64)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One run: tokens of answers per second, and mean latencies in milliseconds.

    Attributes:
        cpu_ms: CPU milliseconds of each part of the server for every 1,000 tokens.
    """

    throughput: float
    ttft_ms: float
    tpot_ms: float
    cpu_ms: dict[str, float]


def figures(lines: Sequence[Timeline], answer: int, cpu_s: dict[str, float]) -> Figures:
    """Return the figures of requests of which each got `answer` tokens; times are in seconds."""
    begin, end = min(line.arrived for line in lines), max(line.tokens[-1] for line in lines)
    tokens = answer * len(lines)
    return Figures(
        throughput=tokens / (end - begin),
        ttft_ms=1000 * statistics.mean(line.ttft for line in lines),
        # The last tokens may come in one chunk, so chunks say nothing of a token's time.
        tpot_ms=1000
        * statistics.mean((own.tokens[-1] - own.tokens[0]) / (answer - 1) for own in lines),
        cpu_ms={part: 1e6 * seconds / tokens for part, seconds in cpu_s.items()},
    )


def median(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    parts = runs[0].cpu_ms
    return Figures(
        throughput=statistics.median(run.throughput for run in runs),
        ttft_ms=statistics.median(run.ttft_ms for run in runs),
        tpot_ms=statistics.median(run.tpot_ms for run in runs),
        cpu_ms={part: statistics.median(run.cpu_ms[part] for run in runs) for part in parts},
    )
