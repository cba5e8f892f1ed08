"""The C++ kernels in fewer bits: as a reference that rounds the same, and close to float32."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamahome.attention import build_policy
from llamahome.config import PolicyConfig
from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.engine.runners.torch import TorchRunner
from tests.engine.random_models import (
    mixed_steps,
    native,
    random_llama,
    random_qwen2,
    random_qwen3,
    skip_unless_here,
    tokens_of,
)
from tests.engine.runners.test_native import ISAS
from tests.native.int8 import Int8Linear

FULL = PolicyConfig.dense(interval=16)
WINDOW = PolicyConfig(name="window", budget=40, sink=4, recent=20, interval=16)
STEPS = 24


def _torch(model: PreTrainedModel, policy: PolicyConfig) -> TorchRunner:
    return TorchRunner(model, build_policy(policy), num_slots=3, max_length=2048)


def _in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model so that it rounds weights and activations as the kernels do."""
    rounding = copy.deepcopy(model)
    for name, module in list(rounding.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(rounding.get_submodule(parent), child, Int8Linear(module))
    embedding = rounding.get_input_embeddings()
    embedding.weight.data = embedding.weight.data.half().float()
    return rounding


def _divergence(expected: Tensor, got: Tensor) -> Tensor:
    """Compute the KL divergence of each row."""
    p, q = expected.double().log_softmax(-1), got.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("build", [random_llama, random_qwen2, random_qwen3])
def test_int8_weights_are_those_of_a_reference_that_rounds_alike(
    build: Callable[..., PreTrainedModel], isa: str
) -> None:
    skip_unless_here(isa)
    model = build(initializer_range=0.1, intermediate_size=160)
    runners: list[Runner] = [
        _torch(_in_int8(model), FULL),
        native(model, build_policy(FULL), int8=True, isa=isa, threads=2),
    ]
    differences = []
    for first in range(3, 240, 3):
        rows = [RowInput(slot=s, tokens=[*range(first, first + 1 + s)]) for s in range(3)]
        for runner in runners:
            for slot in range(3):
                runner.slots.reset(slot)
        expected, logits = (runner.forward(rows).logits for runner in runners)
        differences += ((logits - expected).abs().amax(1) / expected.abs().max()).tolist()
    # For an activation halfway between two steps the last bit of a sum decides.
    assert sum(difference < 1e-4 for difference in differences) > 0.8 * len(differences)
    assert max(differences) < 0.08


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("policy", [FULL, WINDOW], ids=["full", "window"])
@pytest.mark.parametrize(
    ("int8", "kv_dtype", "largest", "divergence"),
    [
        (False, torch.float16, 2e-3, 1e-6),
        (False, torch.int8, 4e-2, 3e-4),
        (True, torch.float32, 0.15, 3e-3),
        (True, torch.float16, 0.15, 3e-3),
        (True, torch.int8, 0.15, 3e-3),
    ],
    ids=["fp16-kv", "int8-kv", "int8", "int8-fp16-kv", "int8-int8-kv"],
)
def test_fewer_bits_stay_close_to_float32(
    policy: PolicyConfig,
    int8: bool,
    kv_dtype: torch.dtype,
    largest: float,
    divergence: float,
    isa: str,
) -> None:
    skip_unless_here(isa)
    model = random_llama(initializer_range=0.1, hidden_size=128, num_attention_heads=4, head_dim=32)
    runner = native(model, build_policy(policy), int8=int8, kv_dtype=kv_dtype, isa=isa, threads=2)
    loss = []
    for rows, expected in mixed_steps(_torch(model, policy), STEPS):
        logits = runner.forward(rows).logits
        assert float((logits - expected).abs().max() / expected.abs().max()) < largest
        loss.append(_divergence(expected, logits).mean())
    assert 0 <= float(torch.stack(loss).mean()) < divergence


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8])
def test_a_long_row_in_fewer_bits_is_the_same_whoever_reads_its_keys(kv_dtype: torch.dtype) -> None:
    """One thread reads all keys of a head; three read a part each and merge."""
    policy = build_policy(PolicyConfig(budget=1024, recent=256, interval=256, decay=None))
    model = random_llama(initializer_range=0.1)
    runners = [
        native(model, policy, kv_dtype=kv_dtype, threads=threads, num_slots=1) for threads in (1, 3)
    ]
    text = tokens_of(5 * 256 + 30, seed=3)
    for first in range(0, 5 * 256, 256):
        for runner in runners:
            runner.forward([RowInput(slot=0, tokens=text[first : first + 256])])
    for token in text[5 * 256 :]:
        one, three = (r.forward([RowInput(slot=0, tokens=[token])]).logits for r in runners)
        torch.testing.assert_close(three, one, rtol=0, atol=1e-3)
    for plane, other in zip(runners[0].slots.planes, runners[1].slots.planes, strict=True):
        assert torch.equal(plane.kv.positions, other.kv.positions)
        torch.testing.assert_close(plane.kv.mass, other.kv.mass, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.int8])
def test_a_saved_slot_goes_on_in_another(kv_dtype: torch.dtype) -> None:
    """A slot is copied bit for bit."""
    policy = build_policy(PolicyConfig(budget=40, sink=4, recent=20, interval=16))
    runner = native(random_llama(), policy, kv_dtype=kv_dtype)
    for first in range(0, 80, 16):
        runner.forward([RowInput(slot=0, tokens=tokens_of(16, seed=first))])
    runner.forward([RowInput(slot=0, tokens=tokens_of(5, seed=5))])
    saved = runner.slots.save(0)
    runner.slots.reset(2, sink=6)
    runner.slots.restore(2, saved)
    assert (runner.slots.lengths[2], runner.slots.sinks[2]) == (85, 4)
    for step in range(14):
        tokens = tokens_of(1, seed=step)
        logits = [runner.forward([RowInput(slot=s, tokens=tokens)]).logits for s in (0, 2)]
        assert torch.equal(*logits)
