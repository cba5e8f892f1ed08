"""Prompts in turns, in the simulated engine."""

from __future__ import annotations

from benchmarks.turns import InTurns
from llamahome.engine.pace import Pace
from tests.engine.simulation import CPU, INTERVAL, Simulation, counts


def test_prompts_take_turns_and_all_are_answered_at_the_end() -> None:
    sim = Simulation(slots=3, cost=CPU)
    sim.scheduler = InTurns(
        3,
        max_queued=9,
        max_queued_tokens=10**9,
        prefill_tokens=INTERVAL,
        chunk=INTERVAL,
        pace=Pace(2.0),
    )
    for name in ("a", "b", "c"):
        sim.add(name, prompt=10 * INTERVAL)
    turns = [next(iter(counts(sim.step()))) for _ in range(9)]
    assert "".join(turns) == "abcabcabc"
    sim.drain()
    first, *_, last = sorted(sim.first_token.values())
    assert first > 0.9 * last
