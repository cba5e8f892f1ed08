"""The kernels put together: a model's decode step by Triton, against the same by torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.attention.kernels import Implementation
from llamahome.cache import Slots
from llamahome.cache.decode_step import DecodeStep, counted
from llamahome.cache.plane import TorchPlane
from tests.policies import policy_case


def _decode(
    model: LlamaForCausalLM, case: str, implementation: Implementation
) -> tuple[Tensor, Slots]:
    HybridAttention.attach(model)
    policy = build_policy(policy_case(case, budget=4, sink=1, recent=2, interval=2))
    slots = Slots(model, policy, num_slots=3, max_length=32)
    counts_mass = counted(slots.plan([0], [1]))
    step = DecodeStep(slots, 3, counts_mass, implementation=implementation)
    ids = torch.arange(3, 6, device=model.device)[:, None]
    outputs: list[Tensor] = []
    for chosen in [*[[1]] * 6, [2, 1]]:
        plan = slots.plan(chosen, [1] * len(chosen))
        step.load(plan)
        with torch.no_grad():
            logits = model(
                ids + len(outputs),
                position_ids=step.position_ids,
                attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device),
                use_cache=False,
                hybrid=step,
            ).logits
        slots.commit(plan)
        outputs.append(logits[: len(chosen), 0])
    return torch.cat(outputs), slots


@pytest.mark.parametrize("case", ["h2o_max", "h2o_pattern", "h2o_pattern_rolling"])
def test_a_step_of_kernels(tiny_llama: LlamaForCausalLM, device: str, case: str) -> None:
    tiny_llama.to(device)
    expected, plain = _decode(tiny_llama, case, "torch")
    logits, slots = _decode(tiny_llama, case, "triton")
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for ours, theirs in zip(slots.planes, plain.planes, strict=True):
        assert isinstance(ours, TorchPlane)
        assert isinstance(theirs, TorchPlane)
        torch.testing.assert_close(ours.kv.mass, theirs.kv.mass, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.kv.keys, theirs.kv.keys, rtol=0, atol=1e-4)
        assert torch.equal(ours.kv.positions, theirs.kv.positions)
