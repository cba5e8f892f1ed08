"""Turns and failures, with fake engines."""

from __future__ import annotations

from typing import Any

from benchmarks.engine.measure import Arm, Turns, decode_cell, prefill_cell
from benchmarks.process import PeerError
from benchmarks.workload import cut

IDS = list(range(10_000))
TURNS = Turns(rounds=3, steps=4, seconds=1.0)


class Fake:
    """A process that answers at once; `fails` names the command that ends it."""

    def __init__(self, log: list[str], name: str, *, fails: str = "") -> None:
        self.log, self.name, self.fails = log, name, fails

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        self.log.append(f"{self.name} {cmd}")
        if cmd == self.fails:
            raise PeerError("it ended")
        answers: dict[str, dict[str, Any]] = {
            "fill": {"kv_bytes": 100, "peak_mib": 5.0},
            "decode": {"steps": [0.5, 0.5], "peak_mib": 7.0},
            "prefill": {"seconds": 2.0, "peak_mib": 3.0},
        }
        return answers.get(cmd, {})

    def close(self) -> None:
        self.log.append(f"{self.name} close")


def _arm(log: list[str], name: str, *, fails: str = "") -> Arm:
    return Arm(name=name, start=lambda: Fake(log, name, fails=fails), load={})


def test_engines_take_turns_once_all_are_filled() -> None:
    log: list[str] = []
    measured = decode_cell([_arm(log, "a"), _arm(log, "b")], 8, 100, IDS, TURNS)
    assert log == [
        *("a load", "a fill", "b load", "b fill"),
        *("a decode", "b decode") * 3,
        *("a drop", "b drop"),
    ]
    assert [(own.arm, own.rounds, own.kv_bytes) for own in measured] == [
        ("a", [16.0] * 3, 100),
        ("b", [16.0] * 3, 100),
    ]


def test_an_engine_that_fails_in_a_cell_restarts_for_the_next() -> None:
    log: list[str] = []
    good, bad = _arm(log, "good"), _arm(log, "bad", fails="decode")
    assert [own.arm for own in decode_cell([bad, good], 1, 100, IDS, TURNS)] == ["good"]
    assert bad.failures == ["bad, decode 1 x 100: it ended"]
    assert bad.missing is None
    log.clear()
    assert [own.tokens_per_second for own in prefill_cell([bad], 100, IDS, 2)] == [50.0]
    assert log == ["bad load", "bad prefill", "bad prefill"]


def test_an_engine_that_does_not_load_is_missing() -> None:
    log: list[str] = []
    arm = _arm(log, "a", fails="load")
    assert decode_cell([arm], 1, 100, IDS, TURNS) == []
    assert prefill_cell([arm], 100, IDS, 1) == []
    assert arm.missing == "it ended"
    assert log == ["a load", "a close"]


def test_prompts_share_no_beginning() -> None:
    prompts = [cut(IDS, 4000, number) for number in range(32)]
    assert {len(prompt) for prompt in prompts} == {4000}
    assert len({prompt[0] for prompt in prompts}) == 32
