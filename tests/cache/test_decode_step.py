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
from llamahome.cache import Slots, SlotStep, StepPlan
from llamahome.cache.decode_step import DecodeStep, counted
from llamahome.config import PolicyConfig
from tests.policies import CASES, built, policy_case

POLICIES = {
    **{case: policy_case(case) for case in CASES},
    "h2o_three_budgets": policy_case("h2o", pattern={"L0H1": None, "L1": 10, "L1H0": 8}),
    "h2o_every_token": policy_case("h2o", interval=1),
    "full": PolicyConfig.dense(interval=8),
}


def _slots(model: LlamaForCausalLM, policy: Policy, dtype: torch.dtype | None = None) -> Slots:
    HybridAttention.attach(model)
    return Slots(model, policy, num_slots=4, max_length=96, dtype=dtype)


def _ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, 256, (length,), generator=generator).tolist()


def _prefill(model: LlamaForCausalLM, slots: Slots, slot: int, ids: list[int]) -> None:
    at = 0
    while at < len(ids):
        n = min(slots.room(slot), len(ids) - at)
        plan = slots.plan([slot], [n])
        step = SlotStep(slots, plan)
        with torch.no_grad():
            model(
                torch.tensor([ids[at : at + n]]),
                position_ids=step.position_ids,
                use_cache=False,
                hybrid=step,
            )
        slots.commit(plan)
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


def _same_entries(slots: Slots, expected: Slots, slot: int) -> None:
    length = slots.lengths[slot]
    assert length == expected.lengths[slot]
    for ours, theirs in zip(slots.planes, expected.planes, strict=True):
        count = slots.policy_of(slot, ours).held(length)
        theirs_by_name = theirs.columns(slot, count)
        for name, column in ours.columns(slot, count).items():
            torch.testing.assert_close(column, theirs_by_name[name], rtol=0, atol=1e-4)


def _one_token(slots: Slots, used: list[int]) -> StepPlan:
    return slots.plan(used, [1] * len(used))


def _decode_step(slots: Slots, size: int, used: list[int]) -> DecodeStep:
    counts_mass = counted(_one_token(slots, used))
    return DecodeStep(slots, size, counts_mass, implementation="torch")


def _compare(
    model: LlamaForCausalLM, slots: Slots, expected: Slots, used: list[int], steps: int, size: int
) -> None:
    """Decode both ways, side by side."""
    step = _decode_step(slots, size, used)
    for t in range(steps):
        tokens = [(7 * t + slot) % 250 + 3 for slot in used]
        plan = _one_token(slots, used)
        step.load(plan)
        logits = _logits(model, step, [*tokens, *[0] * (size - len(used))])
        slots.commit(plan)
        plan = _one_token(expected, used)
        theirs = _logits(model, SlotStep(expected, plan), tokens)
        expected.commit(plan)
        torch.testing.assert_close(logits[: len(used)], theirs, rtol=0, atol=1e-4)
    for slot in used:
        _same_entries(slots, expected, slot)


@pytest.mark.parametrize("name", POLICIES)
def test_a_static_step_is_a_slot_step(tiny_llama: LlamaForCausalLM, name: str) -> None:
    policy = built(POLICIES[name], tiny_llama)
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
        for slot in (0, 1, 3):
            _prefill(tiny_llama, each, slot, _ids(20 + slot))
    _compare(tiny_llama, slots, expected, [3, 1, 0], steps=9, size=3)
    # A window reads no mass, so none is added, except in a batch with a row that reads it.
    assert counted(_one_token(slots, [3])) == (False,) * len(slots.budgets)
    assert any(counted(_one_token(slots, [3, 0])))
    _compare(tiny_llama, slots, expected, [3], steps=5, size=2)


def test_rows_that_are_not_there_leave_no_trace(tiny_llama: LlamaForCausalLM) -> None:
    slots = _slots(tiny_llama, build_policy(POLICIES["h2o_three_budgets"]))
    for slot in range(4):
        _prefill(tiny_llama, slots, slot, _ids(14 + slot))
    columns = [column for plane in slots.planes for column in plane.kv.columns.values()]
    before = [column.clone() for column in columns]
    step = _decode_step(slots, 4, [0])
    _logits(tiny_llama, step, [0, 0, 0, 0])
    slots.commit(_one_token(slots, []))
    step.load(_one_token(slots, [1]))
    _logits(tiny_llama, step, [5, 0, 0, 0])
    others = [0, 2, 3]
    for now, then in zip(columns, before, strict=True):
        assert torch.equal(now[others], then[others])
    assert not torch.equal(columns[0][1], before[0][1])


def test_slots_may_be_narrower_than_the_model(tiny_llama: LlamaForCausalLM) -> None:
    policy = build_policy(POLICIES["h2o"])
    wide, narrow = _slots(tiny_llama, policy), _slots(tiny_llama, policy, dtype=torch.float16)
    outputs = []
    for slots in (wide, narrow):
        step = _decode_step(slots, 1, [0])
        for token in _ids(20):
            plan = _one_token(slots, [0])
            step.load(plan)
            outputs.append(_logits(tiny_llama, step, [token]))
            slots.commit(plan)
    torch.testing.assert_close(outputs[39], outputs[19], rtol=0, atol=0.05)


class _OneDevice(TorchDispatchMode):
    """Refusal of what would end the capture of a CUDA graph: tensors of the host and the GPU mixed.

    The `meta` device itself refuses values on the host, and shapes that depend on them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, func
        return out


@pytest.mark.parametrize("name", ["h2o", "h2o_three_budgets", "h2o_max", "full", "random"])
def test_a_step_never_asks_the_host(tiny_llama: LlamaForCausalLM, name: str) -> None:
    slots = _slots(tiny_llama.to("meta"), build_policy(POLICIES[name]))
    step = _decode_step(slots, 2, [1])
    step.load(_one_token(slots, [1]))

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
    # This test would catch a mask made by transformers, for which it looks at the positions.
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        run(step, None)


def test_what_cannot_be_a_step_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    slots = _slots(tiny_llama, build_policy(POLICIES["full"]))
    step = _decode_step(slots, 2, [0])
    with pytest.raises(ValueError, match="at most 2 slots"):
        step.load(_one_token(slots, [0, 1, 2]))
    with pytest.raises(ValueError, match="no two the same"):
        step.load(_one_token(slots, [1, 1]))
    with pytest.raises(ValueError, match="of one token each"):
        step.load(slots.plan([1], [2]))
    slots.lengths[3] = slots.max_length
    with pytest.raises(ValueError, match="max_length=96"):
        step.load(_one_token(slots, [3]))
    with pytest.raises(ValueError, match="exceeds the 4 slots"):
        _decode_step(slots, 5, [0])
