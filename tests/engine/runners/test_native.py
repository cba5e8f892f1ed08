"""The C++ kernels in float32 against the torch path: the same logits, mass and keys kept."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Policy, build_policy
from llamahome.cache import Slots
from llamahome.cache.plane import TorchPlane
from llamahome.cache.tiled import TiledPlane
from llamahome.config import PolicyConfig
from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.engine.runners.native_model import unsupported
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
from tests.policies import CASES, built, policy_case

ISAS = ["avx512-vnni", "avx2", "portable"]
FULL = PolicyConfig.dense(interval=16)
H2O = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
STEPS = 36

POLICIES = {
    **{case: policy_case(case) for case in CASES},
    "h2o_tiles": H2O,
    "h2o_max_pattern": PolicyConfig(
        budget=40, recent=20, interval=16, group="max", pattern={"L0H1": None, "L1": 64}
    ),
    "h2o_every_token": PolicyConfig(budget=20, sink=2, recent=8, interval=1),
    "snapkv_tiles": PolicyConfig(name="snapkv", budget=40, recent=20, interval=16, window=8),
    "value_norm_tiles": PolicyConfig(name="value_norm", budget=40, recent=20, interval=16),
    "keydiff_tiles": PolicyConfig(name="keydiff", budget=40, recent=20, interval=16),
    "full": FULL,
}
ABSOLUTE = [name for name, config in POLICIES.items() if config.positions == "absolute"]

Steps = list[tuple[list[RowInput], Tensor]]


def _torch(model: PreTrainedModel, policy: Policy) -> TorchRunner:
    return TorchRunner(model, policy, num_slots=3, max_length=2048)


@cache
def _model() -> PreTrainedModel:
    return random_llama()


@cache
def _expected(name: str) -> tuple[Steps, TorchRunner]:
    runner = _torch(_model(), built(POLICIES[name], _model()))
    return list(mixed_steps(runner, STEPS)), runner


def _check(runner: Runner, steps: Steps) -> None:
    for number, (rows, expected) in enumerate(steps):
        logits = runner.forward(rows).logits
        worst = float((logits - expected).abs().max() / expected.abs().max())
        assert worst < 1e-3, f"step {number}: off by {worst:.1e} of the largest logit"


def _check_held(slots: Slots, expected: Slots) -> None:
    """Compare positions, keys and mass in every head of every slot."""
    assert slots.lengths == expected.lengths
    for plane, other in zip(slots.planes, expected.planes, strict=True):
        assert isinstance(plane, TiledPlane)
        assert isinstance(other, TorchPlane)
        for slot in range(slots.num_slots):
            count = slots.policy_of(slot, plane).held(slots.lengths[slot])
            keys = plane.kv.keys[slot].transpose(-1, -2).flatten(1, 2)[:, :count]
            ours, theirs = plane.columns(slot, count), other.columns(slot, count)
            assert torch.equal(ours["positions"], theirs["positions"])
            torch.testing.assert_close(keys, theirs["keys"], rtol=1e-3, atol=1e-3)
            if other.shape.policy.mass is not None:
                torch.testing.assert_close(ours["mass"], theirs["mass"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ABSOLUTE)
def test_mixed_steps_are_those_of_torch(name: str, threads: int, isa: str) -> None:
    skip_unless_here(isa)
    steps, reference = _expected(name)
    policy = built(POLICIES[name], _model())
    runner = native(_model(), policy, threads=threads, isa=isa)
    _check(runner, steps)
    _check_held(runner.slots, reference.slots)
    assert name == "full" or all(policy.evicts(n) for n in runner.slots.lengths)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("policy", [FULL, H2O], ids=["full", "h2o"])
def test_every_size_of_head(policy: PolicyConfig, head_dim: int, isa: str) -> None:
    skip_unless_here(isa)
    model = random_llama(head_dim=head_dim, num_attention_heads=4, initializer_range=0.1)
    steps = list(mixed_steps(_torch(model, build_policy(policy)), 14))
    _check(native(model, build_policy(policy), isa=isa, threads=2), steps)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 12, 24])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_every_size_of_group(kv_heads: int, group: int) -> None:
    model = random_llama(
        num_attention_heads=group * kv_heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=1,
        hidden_size=32 * group,
    )
    policy = build_policy(PolicyConfig(budget=40, sink=4, recent=20, interval=16, group="max"))
    steps = list(mixed_steps(_torch(model, policy), 10))
    for threads in (1, 3):
        _check(native(model, policy, threads=threads), steps)


@pytest.mark.parametrize("tied", [False, True])
def test_biases_and_heads_of_other_models(tied: bool) -> None:
    for model in (
        random_qwen2(tie_word_embeddings=tied),
        random_qwen3(tie_word_embeddings=tied, attention_bias=True),
        random_llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True),
    ):
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
        steps = list(mixed_steps(_torch(model, build_policy(H2O)), 12))
        _check(native(model, build_policy(H2O)), steps)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["h2o", "h2o_tiles", "full"])
def test_norms_of_queries_and_keys(name: str, isa: str) -> None:
    skip_unless_here(isa)
    policy = build_policy(POLICIES[name])
    reference = _torch(random_qwen3(), policy)
    steps = list(mixed_steps(reference, STEPS))
    runner = native(random_qwen3(), policy, threads=2, isa=isa)
    _check(runner, steps)
    _check_held(runner.slots, reference.slots)
    plain = [logits for _, logits in mixed_steps(_torch(random_qwen2(), policy), 2)]
    assert (plain[0] - steps[0][1]).abs().max() > 0.1


@pytest.mark.parametrize("vocab_size", [257, 288, 300])
@pytest.mark.parametrize("intermediate_size", [16, 63, 128])
def test_sizes_that_do_not_fill_panels(vocab_size: int, intermediate_size: int) -> None:
    model = random_llama(vocab_size=vocab_size, intermediate_size=intermediate_size)
    steps = list(mixed_steps(_torch(model, build_policy(FULL)), 6))
    assert steps[0][1].shape[1] == vocab_size
    _check(native(model, build_policy(FULL), threads=2), steps)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_embeddings(rope: dict[str, object]) -> None:
    model = random_llama(rope_parameters={"rope_theta": 10_000.0, **rope})
    steps = list(mixed_steps(_torch(model, build_policy(FULL)), 12))
    _check(native(model, build_policy(FULL)), steps)


@pytest.mark.parametrize("group", ["sum", "max"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_long_row_whose_keys_several_threads_read(threads: int, group: str) -> None:
    policy = build_policy(
        PolicyConfig(budget=1024, sink=4, recent=256, interval=256, group=group, decay=None)
    )
    runners: list[Runner] = [_torch(_model(), policy), native(_model(), policy, threads=threads)]
    text = tokens_of(6 * 256, seed=3)
    chunks = [text[i : i + 256] for i in range(0, len(text), 256)]
    # Prefill, decode against over 1000 keys, and on to the next compaction.
    for tokens in (*chunks, *([t] for t in tokens_of(20, seed=4)), tokens_of(236, seed=5)):
        expected, logits = (
            runner.forward([RowInput(slot=1, tokens=tokens)]).logits for runner in runners
        )
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
        if len(tokens) < 256:
            _check_held(runners[1].slots, runners[0].slots)


def _reason(model: PreTrainedModel, policy: Policy, max_length: int = 65) -> str | None:
    return unsupported(model.config, policy.config, max_length)


def test_what_the_kernels_cannot_compute_is_named() -> None:
    policy = build_policy(H2O)
    assert _reason(_model(), policy) is None
    rolling = build_policy(POLICIES["h2o_rolling"])
    assert "positions='rolling'" in str(_reason(_model(), rolling))
    for changes, reason in (
        ({"head_dim": 24}, "head_dim=24"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"hidden_size": 84}, "hidden_size=84"),
        ({"hidden_size": 800, "num_attention_heads": 25, "num_key_value_heads": 1}, "25 query"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ):
        assert reason in str(_reason(random_llama(**changes), policy))
    sliding = random_qwen2(use_sliding_window=True, sliding_window=64, max_window_layers=0)
    assert "sliding_window=64" in str(_reason(sliding, policy))
    assert _reason(sliding, policy, max_length=64) is None


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    with pytest.raises(RuntimeError, match="isa='sse9' does not run on this machine"):
        native(_model(), build_policy(FULL), isa="sse9")
