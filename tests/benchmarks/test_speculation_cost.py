"""Steps are timed from slots that stay as they were filled."""

from __future__ import annotations

import time

from transformers import LlamaForCausalLM

from benchmarks.speculation_cost import OthersShare, fill, step_costs
from llamahome.attention import build_policy
from llamahome.config import PolicyConfig
from llamahome.engine.runner import TorchRunner


def test_steps_take_turns_on_full_slots(tiny_llama: LlamaForCausalLM) -> None:
    largest = PolicyConfig(budget=48, recent=24, interval=16)
    runner = TorchRunner(tiny_llama, build_policy(largest), num_slots=2, max_length=128)
    ids = [3 + i % 250 for i in range(128)]
    fill(runner, ids, 64, PolicyConfig(budget=32, recent=16, interval=16))
    assert runner.slots.lengths == [64, 64]
    assert [runner.slots.held(slot) for slot in (0, 1)] == [32, 32]
    cost = step_costs(runner, [(1, 4), (9, 9), (3,)], ids, rounds=2)
    assert runner.slots.lengths == [64, 64]
    assert set(cost) == {(3,), (1, 4), (9, 9)}
    for own in cost.values():
        assert 0 < own.quartiles[0] <= own.median <= own.quartiles[1]


def test_others_take_a_share_of_the_machine() -> None:
    share = OthersShare()
    time.sleep(0.1)  # some ticks of its clock
    assert 0 <= share.value <= 1
