"""Requests leave nothing behind, however they end; `make soak` is the long form."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.soak import Sample, leaks, soak, tiny_engine
from llamahome.engine import SamplingParams


def test_three_hundred_requests_leave_nothing_behind() -> None:
    engine = tiny_engine()
    samples, counts = soak(engine, requests=300, turns=6)
    assert leaks(engine, samples) == []
    assert min(counts.finished, counts.cancelled, counts.stopped) > 10
    assert counts.finished + counts.cancelled + counts.stopped == 300


def test_slots_queue_and_growth_are_reported_as_leaks() -> None:
    engine = tiny_engine()
    engine.submit("stays", [1, 2, 3], SamplingParams(max_tokens=9, ignore_eos=True))
    engine.step()
    engine.submit("waits", [1, 2, 3], SamplingParams(max_tokens=9, ignore_eos=True))
    warm = Sample(requests=10, seconds=1.0, rss_mib=400.0, objects=1000)
    grown = replace(warm, rss_mib=420.0, objects=2000)
    assert leaks(engine, [warm, grown]) == [
        "1 slots and 1 places in the queue are taken",
        "memory grew by 20.0 MiB",
        "1000 more Python objects are alive",
    ]
