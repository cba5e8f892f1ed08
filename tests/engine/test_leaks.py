"""Requests leave nothing behind, however they end; `make soak` is the long form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

from benchmarks.soak import Sample, leaks, tiny_engine
from llamahome.engine import SamplingParams


def test_three_hundred_requests_leave_nothing_behind() -> None:
    # In a process of its own, unmeasured: objects of pytest and coverage.py come and go.
    command = [sys.executable, "-m", "benchmarks.soak", "--requests=300", "--turns=6"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, capture_output=True, text=True, env=own, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["leaks"] == []
    assert min(counts["finished"], counts["cancelled"], counts["stopped"]) > 10
    assert counts["finished"] + counts["cancelled"] + counts["stopped"] == 300


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
