"""Engines with prefix snapshots against engines without: the same answers, fewer tokens read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedModel

from llamahome.config import PolicyConfig
from llamahome.engine import Engine, SamplingParams, Usage
from llamahome.models.adapters import attach_adapters
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import tokens_of

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

H2O = PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=16)
POLICIES = {
    "h2o": H2O,
    "full": PolicyConfig.dense(interval=16),
    "pattern": PolicyConfig(budget=40, recent=20, interval=16, pattern={"L0H1": None, "L1": 30}),
    "learned": PolicyConfig(name="learned", budget=40, recent=20, interval=16),
}
SYSTEM = tokens_of(40, seed=100)


def _engine(model: PreTrainedModel, runner: str, policy: str = "h2o", **options: Any) -> Engine:
    return build_engine(model, POLICIES[policy], **{"runner": runner, "slots": 2, **options})


def _ask(engine: Engine, prompt: list[int], **params: Any) -> tuple[list[int], list[float], Usage]:
    """Run a request alone; return its tokens, their log-probabilities, and its usage."""
    engine.submit("one", prompt, SamplingParams(**{"max_tokens": 10, "logprobs": 0, **params}))
    deltas = drain(engine)["one"]
    usage = deltas[-1].usage
    assert usage is not None
    logprobs = [delta.logprob for delta in deltas if delta.logprob is not None]
    return tokens_in(deltas), logprobs, usage


def _cached(engine: Engine, prompt: list[int], **params: Any) -> int:
    return _ask(engine, prompt, **params)[2].cached_tokens


def _same(engine: Engine, plain: Engine, prompt: list[int], **params: Any) -> tuple[list[int], int]:
    """Return the answer, which must be the one without snapshots, and the cached tokens."""
    tokens, logprobs, usage = _ask(engine, prompt, **params)
    expected, expected_logprobs, without = _ask(plain, prompt, **params)
    assert tokens == expected
    assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)
    assert without.cached_tokens == 0
    assert (usage.kept_tokens, usage.evicted_tokens) == (
        without.kept_tokens,
        without.evicted_tokens,
    )
    return tokens, usage.cached_tokens


@pytest.mark.parametrize("policy", POLICIES)
def test_a_shared_system_prompt_is_read_twice_and_then_found(
    tiny_llama: LlamaForCausalLM, runner: str, policy: str
) -> None:
    """Expect two misses: only the second prompt shows where it leaves the first."""
    engine = _engine(tiny_llama, runner, policy)
    plain = _engine(tiny_llama, runner, policy, snapshot_bytes=0)
    cached = [
        _same(engine, plain, SYSTEM + tokens_of(33, seed=user), protected=5)[1] for user in range(4)
    ]
    assert cached == [0, 0, 32, 32]
    stats = engine.stats()
    assert (stats.prefix_hits, stats.prefix_misses, stats.prefix_hit_tokens) == (2, 2, 64)
    assert stats.prefix_bytes > 0
    assert plain.stats().prefix_misses == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_chat_goes_on_where_it_ended_within_a_chunk(
    tiny_llama: LlamaForCausalLM, runner: str, policy: str
) -> None:
    engine = _engine(tiny_llama, runner, policy)
    plain = _engine(tiny_llama, runner, policy, snapshot_bytes=0)
    chat = list(SYSTEM)
    for turn in range(5):
        before = len(chat) - 1  # the last token of an answer is never fed back
        chat += tokens_of(13 + turn, seed=turn)
        answer, cached = _same(engine, plain, chat, max_tokens=9 + turn)
        assert cached == (0 if turn == 0 else before)
        chat += answer
    assert engine.stats().prefix_hits == 4


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48])
def test_the_same_prompt_again(tiny_llama: LlamaForCausalLM, runner: str, length: int) -> None:
    """Expect the last token of a prompt to be computed, for its logits."""
    engine = _engine(tiny_llama, runner)
    plain = _engine(tiny_llama, runner, snapshot_bytes=0)
    prompt = tokens_of(length, seed=9)
    cached = [_same(engine, plain, prompt, temperature=0.7, seed=3)[1] for _ in range(3)]
    assert cached == [0, (length - 1) // 16 * 16, (length - 1) // 16 * 16]


def test_an_answer_that_ends_at_a_boundary(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner)
    plain = _engine(tiny_llama, runner, snapshot_bytes=0)
    answer, _ = _same(engine, plain, SYSTEM, max_tokens=9)  # 48 tokens went through the slot
    _, cached = _same(engine, plain, SYSTEM + answer + [7])
    assert cached == 48


def test_rows_that_begin_from_snapshots_share_steps_with_others(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    prompts = {name: SYSTEM + tokens_of(20 + 9 * i, seed=i) for i, name in enumerate("abcdef")}
    plain = _engine(tiny_llama, runner, snapshot_bytes=0)
    expected = {name: _ask(plain, prompt)[0] for name, prompt in prompts.items()}
    engine = _engine(tiny_llama, runner)
    for name, prompt in prompts.items():
        engine.submit(name, prompt, SamplingParams(max_tokens=10))
    assert {name: tokens_in(deltas) for name, deltas in drain(engine).items()} == expected
    assert engine.stats().prefix_hits >= 3


def test_an_adapter_named_none_is_not_the_base_model(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, runner: str
) -> None:
    """Tell the adapter's name from its absence in the identity of snapshots."""
    lora = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(tiny_llama), lora).save_pretrained(tmp_path)
    engine = _engine(attach_adapters(tiny_llama, {"None": tmp_path}), runner)
    prompt = tokens_of(70, seed=1)
    base, adapted = ({"adapter": adapter} for adapter in (None, "None"))
    assert [_cached(engine, prompt, **params) for params in (base, adapted)] == [0, 0]
    assert [_cached(engine, prompt, **params) for params in (base, adapted)] == [64, 64]


@pytest.mark.parametrize(
    "other",
    [
        {"kv_budget": 30},
        {"kv_policy": "window"},
        {"protected": 9},
        {"kv_policy": "h2o", "kv_budget": 32},
        {"adapter": "a"},
    ],
    ids=lambda other: "-".join(other),
)
def test_what_changes_a_slot_does_not_share(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, runner: str, other: dict[str, Any]
) -> None:
    lora = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(tiny_llama), lora).save_pretrained(tmp_path)
    engine = _engine(attach_adapters(tiny_llama, {"a": tmp_path}), runner)
    prompt = tokens_of(70, seed=1)
    assert [_cached(engine, prompt, **params) for params in ({}, other)] == [0, 0]
    assert [_cached(engine, prompt, **params) for params in ({}, other)] == [64, 64]


def test_the_folder_serves_the_next_engine(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, runner: str
) -> None:
    folder = str(tmp_path / "snapshots")
    prompt = tokens_of(70, seed=1)
    first = _engine(tiny_llama, runner, snapshot_dir=folder)
    expected, _, usage = _ask(first, prompt)
    assert usage.cached_tokens == 0
    assert first.stats().prefix_disk_bytes == 0
    first.close()
    assert first.stats().prefix_disk_bytes > 0
    second = _engine(tiny_llama, runner, snapshot_dir=folder)
    plain = _engine(tiny_llama, runner, snapshot_bytes=0)
    tokens, cached = _same(second, plain, prompt)
    assert (tokens, cached) == (expected, 64)
    assert second.stats().prefix_hit_tokens == 64


def test_a_folder_serves_only_engines_that_compute_the_same(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    """Read the prompt again under other weights, another policy or runner, other precisions."""
    other = copy.deepcopy(tiny_llama)
    other.model.layers[1].mlp.down_proj.weight.data[3, 5] += 0.5
    prompt = tokens_of(70, seed=1)
    for model, options in (
        (tiny_llama, {"runner": "torch"}),
        (tiny_llama, {"runner": "native"}),
        (tiny_llama, {"runner": "native", "weights": "int8", "kv_dtype": "fp32"}),
        (tiny_llama, {"runner": "native", "kv_dtype": "int8"}),
        (tiny_llama, {"runner": "native", "policy": "full"}),
        (other, {"runner": "native"}),
    ):
        engine = _engine(model, **options, snapshot_dir=str(tmp_path / "snapshots"))
        assert [_cached(engine, prompt) for _ in range(2)] == [0, 64]
        engine.close()


def test_little_memory_overflows_into_the_folder(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, runner: str
) -> None:
    folder = str(tmp_path / "snapshots")
    engine = _engine(tiny_llama, runner, snapshot_bytes=60_000, snapshot_dir=folder)
    plain = _engine(tiny_llama, runner, snapshot_bytes=0)
    prompts = [tokens_of(50, seed=user) for user in range(5)]
    for prompt in prompts:
        assert _same(engine, plain, prompt)[1] == 0
    assert engine.stats().prefix_bytes <= 60_000
    assert engine.stats().prefix_disk_bytes > 0
    for prompt in prompts:
        assert _same(engine, plain, prompt)[1] == 48


def test_a_request_for_prompt_logprobs_computes_every_token(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)
    prompt = tokens_of(70, seed=1)
    assert _cached(engine, prompt) == 0
    assert _cached(engine, prompt, prompt_logprobs=1) == 0
    assert _cached(engine, prompt) == 64


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_a_request_that_is_cancelled_or_fails_leaves_no_end(
    tiny_llama: LlamaForCausalLM, runner: str, end: str
) -> None:
    """Keep a boundary of the prompt, for the same prompt again, but not the place of the break."""
    engine = _engine(tiny_llama, runner)
    prompt = tokens_of(21, seed=1)
    engine.submit("gone", prompt, SamplingParams(max_tokens=50))
    answer: list[int] = []
    while len(answer) < 4:
        answer += tokens_in(engine.step())
    getattr(engine, end)("gone")
    assert _cached(engine, prompt + answer) == 16
    # A request that is stopped does leave it.
    engine.submit("stopped", prompt, SamplingParams(max_tokens=50))
    answer = []
    while len(answer) < 4:
        answer += tokens_in(engine.step())
    engine.stop("stopped")
    assert _cached(engine, prompt + answer) == 24


def test_a_request_stopped_during_prefill_leaves_what_was_read(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner, prefill_tokens=10)
    prompt = tokens_of(70, seed=1)
    engine.submit("waiting", prompt, SamplingParams())
    assert engine.stop("waiting").cached_tokens == 0
    engine.submit("reading", prompt, SamplingParams())
    for _ in range(3):
        engine.step()
    engine.stop("reading")
    assert not engine.has_work
    # 10, then the 6 that fill a chunk, then 10 of the next.
    assert _cached(engine, prompt) == 26


def test_a_request_that_breaks_leaves_nothing_that_others_read(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    poison = 17
    tiny_llama.model.embed_tokens.weight.data[poison] = float("nan")
    clean = [3 if token == poison else token for token in tokens_of(50, seed=1)]
    expected = _ask(_engine(tiny_llama, runner, snapshot_bytes=0), clean)[0]
    engine = _engine(tiny_llama, runner, slots=1)
    for _ in range(2):
        engine.submit("bad", [*clean[:20], poison, *clean[21:]], SamplingParams(max_tokens=4))
        assert drain(engine)["bad"][-1].finish_reason == "error"
    assert _ask(engine, clean)[0] == expected
    assert torch.isfinite(torch.tensor(_ask(engine, clean)[1])).all()
