"""A policy with weights, served by every runner that takes it, as it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, Policy, build_policy
from llamahome.cache import Slots
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, RequestError, SamplingParams
from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.engine.runners.cuda_graphs import DecodeGraphs
from llamahome.engine.runners.torch import TorchRunner
from tests.engine.random_models import native, random_llama, tokens_of

pytestmark = pytest.mark.usefixtures("linear_policy")

LENGTH = 90
IDS = tokens_of(LENGTH, seed=3)


def _policy(model: LlamaForCausalLM, seed: int, name: str = "linear") -> Policy:
    """Build the policy with random weights, under budgets that differ."""
    config = PolicyConfig(
        name=name,
        budget=24,
        sink=2,
        recent=8,
        interval=8,
        pattern={"L1H1": 40, "L0H0": None},
    )
    weights = build_policy(config, model).weights
    assert weights is not None
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in weights.state_dict().items()
    }
    return build_policy(config, model, state)


def _trained(model: LlamaForCausalLM, policy: Policy) -> Tensor:
    """Compute all logits as a training step does."""
    HybridAttention.attach(model)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([IDS]),
            use_cache=False,
            hybrid=HybridAttention(policy, model),
        ).logits[0]


def _served(runner: Runner) -> Tensor:
    """Compute all logits in chunks of uneven size, then token by token."""
    runner.slots.reset(1)
    parts, at = [], 0
    while at < LENGTH:
        count = min(runner.slots.room(1), 5 if at < LENGTH // 2 else 1, LENGTH - at)
        row = RowInput(slot=1, tokens=IDS[at : at + count], every="logits")
        parts.append(runner.forward([row]).every[0])
        at += count
    return torch.cat(parts)


def _torch(model: LlamaForCausalLM, policy: Policy) -> Runner:
    return TorchRunner(model, policy, num_slots=2, max_length=128)


@pytest.mark.parametrize("make", [_torch, native], ids=["torch", "native"])
def test_training_prefill_and_decode_agree(make) -> None:
    model = random_llama()
    policy = _policy(model, 0)
    expected = _trained(model, policy)
    assert (expected - _trained(model, _policy(model, 1))).abs().max() > 1e-2  # weights matter
    torch.testing.assert_close(_served(make(model, policy)), expected, rtol=0, atol=1e-4)


def test_decode_in_static_shapes_agrees_too() -> None:
    model = random_llama()
    policy = _policy(model, 0)
    expected = _trained(model, policy)
    slots = Slots(model, policy, num_slots=2, max_length=128)
    graphs = DecodeGraphs(model, slots)
    logits = torch.cat([graphs.decode([1], [token]) for token in IDS])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [_torch, native], ids=["torch", "native"])
def test_a_saved_slot_goes_on_as_it_would_have(make) -> None:
    """Features travel with the entries, also from within a chunk."""
    model = random_llama()
    runner = make(model, _policy(model, 0))
    whole = _served(runner)
    runner.slots.reset(1)
    for at in range(45):
        runner.forward([RowInput(slot=1, tokens=IDS[at : at + 1])])
    state = runner.slots.save(1)
    runner.slots.wipe(1)
    runner.slots.reset(0)
    runner.slots.restore(0, state)
    for at in range(45, LENGTH):
        logits = runner.forward([RowInput(slot=0, tokens=IDS[at : at + 1])]).logits
    torch.testing.assert_close(logits[0], whole[-1], rtol=0, atol=1e-5)


def _hits(policy: Policy, model: LlamaForCausalLM, folder: Path) -> int:
    config = EngineConfig(slots=1, max_length=128, snapshot_dir=str(folder), weights="fp32")
    engine = Engine(model, policy, config)
    engine.submit("one", IDS, SamplingParams(max_tokens=1))
    while engine.has_work:
        engine.step()
    engine.close()
    return engine.stats().prefix_hits


def test_snapshots_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    model = random_llama()
    folder = tmp_path / "snapshots"
    assert _hits(_policy(model, 0), model, folder) == 0
    assert _hits(_policy(model, 1), model, folder) == 0
    assert _hits(_policy(model, 0), model, folder) == 1


def test_requests_share_the_weights_under_a_budget_of_their_own() -> None:
    model = random_llama()
    engine = Engine(model, _policy(model, 0), EngineConfig(slots=2, max_length=128))
    engine.submit("small", IDS, SamplingParams(max_tokens=4, kv_budget=16))
    engine.submit("plain", IDS, SamplingParams(max_tokens=4, kv_policy="window"))
    errors = []
    while engine.has_work:
        errors += [delta.error for delta in engine.step() if delta.error is not None]
    assert errors == []
    window = build_policy(PolicyConfig(name="window", budget=24, recent=8, interval=8))
    other = Engine(model, window, EngineConfig(slots=1, max_length=128))
    with pytest.raises(RequestError, match="kv_policy='linear'"):
        other.submit("one", IDS, SamplingParams(max_tokens=4, kv_policy="linear"))
