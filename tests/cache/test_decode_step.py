"""The decode step of static shapes against `SlotStep`, and against what a CUDA graph allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, Policy, build_policy
from llamahome.cache import Slots
from llamahome.cache.decode_step import DecodeStep, counted
from llamahome.cache.plane import PlaneSlots
from llamahome.config import PolicyConfig
from tests.policies import CASES, policy_case

POLICIES = {
    **{case: policy_case(case) for case in CASES},
    "h2o_three_budgets": policy_case("h2o", pattern={"L0H1": None, "L1": 10, "L1H0": 8}),
    "h2o_every_token": policy_case("h2o", interval=1),
    "full": PolicyConfig(name="full", budget=None, interval=8),
}


def _slots(model: LlamaForCausalLM, policy: Policy, dtype: torch.dtype | None = None) -> Slots:
    HybridAttention.attach(model)
    return Slots.for_model(model, policy, num_slots=4, max_length=96, dtype=dtype)


def _ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, 256, (length,), generator=generator).tolist()


def _prefill(model: LlamaForCausalLM, slots: Slots, row: int, ids: list[int]) -> None:
    at = 0
    while at < len(ids):
        n = min(slots.room(row), len(ids) - at)
        step = slots.begin([row], [n])
        with torch.no_grad():
            model(
                torch.tensor([ids[at : at + n]]),
                position_ids=step.position_ids,
                use_cache=False,
                hybrid=step,
            )
        slots.commit(step)
        at += n


def _logits(model: LlamaForCausalLM, step: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(
            torch.tensor(tokens)[:, None],
            position_ids=step.position_ids,
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool),
            use_cache=False,
            hybrid=step,
        ).logits[:, 0]
    return logits


def _planes(slots: Slots) -> list[PlaneSlots]:
    return [plane for plane in slots.planes if isinstance(plane, PlaneSlots)]


def _same_entries(slots: Slots, expected: Slots, row: int) -> None:
    length = slots.lengths[row]
    assert length == expected.lengths[row]
    for ours, theirs in zip(_planes(slots), _planes(expected), strict=True):
        count = slots.policy_of(row, ours).held(length)
        for name in ("keys", "values", "mass", "positions"):
            torch.testing.assert_close(
                getattr(ours, name)[row, :, :count],
                getattr(theirs, name)[row, :, :count],
                rtol=0,
                atol=1e-4,
            )


def _compare(
    model: LlamaForCausalLM, slots: Slots, expected: Slots, rows: list[int], steps: int, size: int
) -> None:
    """Decode both ways, side by side."""
    step = DecodeStep(slots, size, counted(slots, rows), implementation="torch")
    for t in range(steps):
        tokens = [(7 * t + row) % 250 + 3 for row in rows]
        step.load(rows)
        logits = _logits(model, step, [*tokens, *[0] * (size - len(rows))])
        slots.commit(step)
        plain = expected.begin(rows, [1] * len(rows))
        theirs = _logits(model, plain, tokens)
        expected.commit(plain)
        torch.testing.assert_close(logits[: len(rows)], theirs, rtol=0, atol=1e-4)
    for row in rows:
        _same_entries(slots, expected, row)


@pytest.mark.parametrize("name", POLICIES)
def test_a_static_step_is_a_slot_step(tiny_llama: LlamaForCausalLM, name: str) -> None:
    policy = build_policy(POLICIES[name])
    slots, expected = (_slots(tiny_llama, policy) for _ in range(2))
    for each in (slots, expected):
        _prefill(tiny_llama, each, 2, _ids(21))
        _prefill(tiny_llama, each, 0, _ids(6))
    _compare(tiny_llama, slots, expected, [2, 0], steps=10, size=4)


def test_rows_may_have_policies_of_their_own(tiny_llama: LlamaForCausalLM) -> None:
    slots, expected = (
        _slots(tiny_llama, build_policy(POLICIES["h2o_three_budgets"])) for _ in range(2)
    )
    narrow = build_policy(policy_case("tova", budget=9))
    window = build_policy(policy_case("window", budget=10))
    for each in (slots, expected):
        each.reset(1, policy=narrow)
        each.reset(3, policy=window)
        for row in (0, 1, 3):
            _prefill(tiny_llama, each, row, _ids(20 + row))
    _compare(tiny_llama, slots, expected, [3, 1, 0], steps=9, size=3)
    # Nobody asks for mass: none is added, beside rows that do it is.
    assert counted(slots, [3]) == (False,) * len(slots.budgets)
    assert any(counted(slots, [3, 0]))
    _compare(tiny_llama, slots, expected, [3], steps=5, size=2)


def test_rows_that_are_not_there_leave_no_trace(tiny_llama: LlamaForCausalLM) -> None:
    slots = _slots(tiny_llama, build_policy(POLICIES["h2o_three_budgets"]))
    for row in range(4):
        _prefill(tiny_llama, slots, row, _ids(14 + row))
    before = [
        getattr(plane, name).clone()
        for plane in _planes(slots)
        for name in ("keys", "values", "mass", "positions")
    ]
    step = DecodeStep(slots, 4, counted(slots, [0]), implementation="torch")
    _logits(tiny_llama, step, [0, 0, 0, 0])
    slots.commit(step)
    step.load([1])
    _logits(tiny_llama, step, [5, 0, 0, 0])
    others = [0, 2, 3]
    after = [
        getattr(plane, name)
        for plane in _planes(slots)
        for name in ("keys", "values", "mass", "positions")
    ]
    for now, then in zip(after, before, strict=True):
        assert torch.equal(now[others], then[others])
    assert not torch.equal(after[0][1], before[0][1])


def test_slots_may_be_narrower_than_the_model(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o"])
    wide, narrow = _slots(tiny_llama, policy), _slots(tiny_llama, policy, dtype=torch.float16)
    outputs = []
    for slots in (wide, narrow):
        step = DecodeStep(slots, 1, counted(slots, [0]), implementation="torch")
        for token in _ids(20):
            step.load([0])
            outputs.append(_logits(tiny_llama, step, [token]))
            slots.commit(step)
    torch.testing.assert_close(outputs[39], outputs[19], rtol=0, atol=0.05)


class _OneDevice(TorchDispatchMode):
    """Refuses what would end the capture of a CUDA graph: tensors of the host beside the GPU's.

    Values on the host, and shapes that depend on them, are what the `meta` device refuses by
    itself.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, func
        return out


@pytest.mark.parametrize("name", ["h2o", "h2o_three_budgets", "h2o_max", "full", "random"])
def test_a_step_never_asks_the_host(tiny_llama: LlamaForCausalLM, name: str) -> None:
    slots = _slots(tiny_llama.to("meta"), build_policy(POLICIES[name]))
    step = DecodeStep(slots, 2, counted(slots, [1]), implementation="torch")
    step.load([1])

    def run(hybrid: Any, mask: Tensor | None) -> None:
        ids = torch.zeros(2, 1, dtype=torch.int64, device="meta")
        with torch.no_grad(), _OneDevice():
            tiny_llama.base_model(
                input_ids=ids,
                position_ids=step.position_ids,
                attention_mask=mask,
                use_cache=False,
                hybrid=hybrid,
            )

    run(step, torch.zeros(1, 1, 1, 1, dtype=torch.bool, device="meta"))
    # What this test would catch: transformers, left to make a mask, looks at the positions.
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        run(step, None)


def test_what_cannot_be_a_step_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    slots = _slots(tiny_llama, build_policy(POLICIES["full"]))
    step = DecodeStep(slots, 2, counted(slots, [0]), implementation="torch")
    with pytest.raises(ValueError, match="at most 2 slots"):
        step.load([0, 1, 2])
    with pytest.raises(ValueError, match="no two alike"):
        step.load([1, 1])
    slots.lengths[3] = slots.max_length
    with pytest.raises(ValueError, match="max_length=96"):
        step.load([3])
    with pytest.raises(ValueError, match="exceeds the 4 slots"):
        DecodeStep(slots, 5, counted(slots, [0]), implementation="torch")
