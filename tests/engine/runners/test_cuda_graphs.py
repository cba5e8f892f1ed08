"""Decode graphs by batch size: on a CPU everything but the capture, on a GPU with it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.attention import build_policy
from llamahome.config import PolicyConfig
from llamahome.engine.runners.contract import RowInput
from llamahome.engine.runners.cuda_graphs import DecodeGraphs
from llamahome.engine.runners.torch import TorchRunner
from tests.policies import policy_case

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _runner(model: LlamaForCausalLM, policy: PolicyConfig) -> TorchRunner:
    return TorchRunner(model, build_policy(policy), num_slots=6, max_length=64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["h2o_decay", "h2o_pattern", "h2o_pattern_rolling", "window"])
def test_batches_of_any_size_decode_as_the_plain_runner(
    tiny_llama: LlamaForCausalLM, case: str, device: str
) -> None:
    tiny_llama.to(device)
    plain, under = (_runner(tiny_llama, policy_case(case)) for _ in range(2))
    graphs = DecodeGraphs(tiny_llama, under.slots)
    assert graphs.sizes == [1, 2, 4, 6]
    on_gpu = device == "cuda"
    assert (graphs.implementation, graphs.captures) == ("triton" if on_gpu else "torch", on_gpu)
    graphs.warm_up()
    for runner in (plain, under):
        runner.forward([RowInput(slot=slot, tokens=[9, slot + 3, 7]) for slot in (4, 1, 0, 3)])
    for batch in ([4], [1, 4], [0, 4, 3], [5, 4, 3, 1, 0], [0, 1, 2, 3, 4, 5], [2], [3, 0]):
        expected = plain.forward([RowInput(slot=s, tokens=[s + 20]) for s in batch]).logits
        logits = graphs.decode(batch, [slot + 20 for slot in batch])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert plain.slots.lengths == under.slots.lengths


def test_a_request_with_a_policy_of_its_own_gets_a_graph_that_counts(
    tiny_llama: LlamaForCausalLM,
) -> None:
    plain, under = (_runner(tiny_llama, policy_case("window")) for _ in range(2))
    graphs = DecodeGraphs(tiny_llama, under.slots)
    for runner in (plain, under):
        runner.slots.reset(0, policy=build_policy(policy_case("h2o")))
    for t in range(24):
        rows = [RowInput(slot=slot, tokens=[t + slot + 3]) for slot in (0, 1)]
        expected = plain.forward(rows).logits
        logits = graphs.decode([0, 1], [t + 3, t + 4])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_graphs_without_a_gpu_are_refused(tiny_llama: LlamaForCausalLM) -> None:
    slots = _runner(tiny_llama, policy_case("h2o")).slots
    with pytest.raises(ValueError, match="need a GPU"):
        DecodeGraphs(tiny_llama, slots, capture=True)
    tiny_llama.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match="capture=False"):
        DecodeGraphs(tiny_llama, slots, capture=True)
