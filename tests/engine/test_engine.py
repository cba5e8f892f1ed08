"""The engine against transformers' generate, and requests against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig
from llamahome.engine import Engine, QueueFullError, RequestError, SamplingParams
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import tokens_of

H2O = PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=16)
FULL = PolicyConfig.dense(interval=16)


def _engine(
    model: LlamaForCausalLM, runner: str, policy: PolicyConfig = H2O, **options: Any
) -> Engine:
    return build_engine(model, policy, **{"runner": runner, "slots": 4, "max_queued": 8, **options})


def _generate(engine: Engine, prompt: list[int], **params: object) -> list[int]:
    engine.submit("one", prompt, SamplingParams(**params))
    return tokens_in(drain(engine)["one"])


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 48, 53])
@pytest.mark.parametrize("policy", [FULL, PolicyConfig(budget=128, recent=64, interval=16)])
def test_without_eviction_greedy_tokens_are_those_of_generate(
    tiny_llama: LlamaForCausalLM, policy: PolicyConfig, length: int, runner: str
) -> None:
    prompt = tokens_of(length)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        expected = tiny_llama.generate(  # type: ignore[misc]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=None,
        )[0, length:]
    assert (
        _generate(_engine(tiny_llama, runner, policy), prompt, max_tokens=40) == expected.tolist()
    )


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
def test_under_eviction_greedy_tokens_are_those_of_the_training_forward(
    tiny_llama: LlamaForCausalLM, name: str, runner: str
) -> None:
    policy = PolicyConfig(name=name, budget=24, sink=4, recent=16, interval=8)
    ids = tokens_of(37)
    answer = _generate(_engine(tiny_llama, runner, policy), ids, max_tokens=30)
    attention = HybridAttention(build_policy(policy))
    attention.attach(tiny_llama)
    whole = torch.tensor([ids + answer])
    with torch.no_grad():
        logits: Tensor = tiny_llama(whole, use_cache=False, hybrid=attention).logits
    assert logits[0, len(ids) - 1 : -1].argmax(-1).tolist() == answer


def test_a_batch_gives_each_request_what_it_gets_alone(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    prompts = {f"r{n}": tokens_of(n, seed=n) for n in (3, 16, 40, 77, 130, 9)}
    alone = {
        name: _generate(_engine(tiny_llama, runner), prompt, max_tokens=20 + len(prompt) % 7)
        for name, prompt in prompts.items()
    }
    engine = _engine(tiny_llama, runner, slots=3)
    for name, prompt in prompts.items():
        engine.submit(name, prompt, SamplingParams(max_tokens=20 + len(prompt) % 7))
    together = {name: tokens_in(deltas) for name, deltas in drain(engine).items()}
    assert together == alone


def test_a_seed_gives_the_same_text_in_any_company(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    sampled = {"max_tokens": 25, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    alone = _generate(_engine(tiny_llama, runner), tokens_of(30), **sampled)
    engine = _engine(tiny_llama, runner)
    engine.submit("other", tokens_of(60, seed=2), SamplingParams(max_tokens=40, temperature=1.0))
    engine.submit("one", tokens_of(30), SamplingParams(**sampled))
    assert tokens_in(drain(engine)["one"]) == alone
    assert _generate(_engine(tiny_llama, runner), tokens_of(30), **{**sampled, "seed": 6}) != alone
    assert _generate(_engine(tiny_llama, runner), tokens_of(30), max_tokens=25) != alone


def test_it_stops_at_the_end_of_sequence_token(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    tokens = _generate(_engine(tiny_llama, runner), tokens_of(30), max_tokens=10)
    eos = tokens[4]
    engine = _engine(tiny_llama, runner, eos=(eos,))
    engine.submit("one", tokens_of(30), SamplingParams(max_tokens=10))
    deltas = drain(engine)["one"]
    assert tokens_in(deltas) == tokens[: tokens.index(eos)]
    assert deltas[-1].finish_reason == "stop"
    ignoring = _generate(
        _engine(tiny_llama, runner, eos=(eos,)), tokens_of(30), max_tokens=10, ignore_eos=True
    )
    assert ignoring == tokens


def test_a_stop_token_ends_the_answer_but_not_before_min_tokens(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    tokens = _generate(_engine(tiny_llama, runner), tokens_of(30), max_tokens=10)
    stop = tokens[4]
    params = {"max_tokens": 10, "stop_token_ids": (stop,)}
    assert (
        _generate(_engine(tiny_llama, runner), tokens_of(30), **params)
        == tokens[: tokens.index(stop)]
    )
    ignoring = _generate(_engine(tiny_llama, runner), tokens_of(30), **params, ignore_eos=True)
    assert ignoring == tokens[: tokens.index(stop)]
    longer = _generate(_engine(tiny_llama, runner), tokens_of(30), **params, min_tokens=7)
    assert len(longer) >= 7
    assert stop not in longer[:7]


def test_logprobs_are_those_of_the_model_over_the_whole_text(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    prompt = tokens_of(30)
    engine = _engine(tiny_llama, runner, FULL)
    engine.submit("one", prompt, SamplingParams(max_tokens=12, temperature=0.9, seed=2, logprobs=2))
    deltas = drain(engine)["one"]
    answer = tokens_in(deltas)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([prompt + answer])).logits[0, 29:-1]
    expected = logits.double().log_softmax(dim=-1)
    own = expected[torch.arange(12), torch.tensor(answer)].tolist()
    assert [delta.logprob for delta in deltas] == pytest.approx(own, abs=1e-4)
    likeliest = [[token for token, _ in delta.top_logprobs] for delta in deltas]
    assert likeliest == expected.topk(2).indices.tolist()


@pytest.mark.parametrize("length", [1, 2, 16, 53])
def test_prompt_logprobs_are_those_of_the_model(
    tiny_llama: LlamaForCausalLM, length: int, runner: str
) -> None:
    prompt = tokens_of(length)
    engine = _engine(tiny_llama, runner, FULL)
    params = {"prompt_logprobs": 2, "temperature": 1.0, "seed": 0}
    engine.submit("scored", prompt, SamplingParams(max_tokens=0, **params))
    engine.submit("answered", prompt, SamplingParams(max_tokens=3, **params))
    deltas = drain(engine)
    (scored,), (first, *later) = deltas["scored"], deltas["answered"]
    assert (scored.token, scored.finish_reason) == (None, "length")
    assert all(delta.prompt_logprobs == () for delta in later)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([prompt])).logits[0, :-1]
    expected = logits.double().log_softmax(dim=-1)
    own = expected[torch.arange(length - 1), torch.tensor(prompt[1:], dtype=torch.int64)]
    for delta in (scored, first):
        nothing, *found = delta.prompt_logprobs
        assert nothing == (None, ())
        assert [logprob for logprob, _ in found] == pytest.approx(own.tolist(), abs=1e-4)
        likeliest = [[token for token, _ in top] for _, top in found]
        assert likeliest == expected.topk(2).indices.tolist()


def test_usage_counts_what_was_kept_and_evicted(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner)
    engine.submit("one", tokens_of(100), SamplingParams(max_tokens=21))
    last = drain(engine)["one"][-1]
    assert last.finish_reason == "length"
    usage = last.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 21)
    # The last token is never fed back: 120 went in, 7 chunks of 16 complete, 8 in the open one.
    assert (usage.kept_tokens, usage.evicted_tokens) == (40 + 8, 120 - 48)
    assert usage.kv_bytes < usage.kv_bytes_dense
    assert engine.stats().evicted_tokens == 72
    assert engine.stats().kv_bytes == 4 * usage.kv_bytes


def test_a_long_prompt_delays_others_by_a_chunk_at_a_time(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)
    engine.submit("short", tokens_of(5), SamplingParams(max_tokens=50))
    engine.step()
    engine.submit("long", tokens_of(160), SamplingParams(max_tokens=5))
    for _ in range(9):
        assert [delta.request_id for delta in engine.step()] == ["short"]


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_cancel_frees_the_slot_at_once(
    tiny_llama: LlamaForCausalLM, steps: int, runner: str
) -> None:
    engine = _engine(tiny_llama, runner, slots=1)
    engine.submit("gone", tokens_of(40), SamplingParams(max_tokens=50))
    for _ in range(steps):
        engine.step()
    engine.cancel("gone")
    engine.cancel("never there")
    stats = engine.stats()
    assert (stats.slots_used, stats.queued, stats.requests_cancelled) == (0, 0, 1)
    expected = _generate(_engine(tiny_llama, runner, slots=1), tokens_of(30), max_tokens=5)
    assert _generate(engine, tokens_of(30), max_tokens=5) == expected


def test_a_request_whose_logits_break_fails_alone(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    poison = 17
    tiny_llama.model.embed_tokens.weight.data[poison] = float("nan")
    prompt = [t for t in tokens_of(40) if t != poison]
    engine = _engine(tiny_llama, runner)
    engine.submit("good", prompt, SamplingParams(max_tokens=4))
    engine.submit("bad", [*prompt[:10], poison], SamplingParams(max_tokens=4))
    deltas = drain(engine)
    assert deltas["bad"][-1].finish_reason == "error"
    assert "not finite" in str(deltas["bad"][-1].error)
    assert len(tokens_in(deltas["good"])) == 4
    assert engine.stats().requests_failed == 1
    assert _generate(engine, prompt, max_tokens=4) == tokens_in(deltas["good"])


def test_the_queue_has_an_end(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner, slots=1, max_queued=1)
    engine.submit("a", tokens_of(4), SamplingParams(max_tokens=2))
    engine.submit("b", tokens_of(4), SamplingParams(max_tokens=2))
    with pytest.raises(QueueFullError, match="max_queued=1"):
        engine.submit("c", tokens_of(4), SamplingParams(max_tokens=2))
    assert set(drain(engine)) == {"a", "b"}


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [
        ([], 5, "prompt"),
        ([3, 260], 5, "prompt"),
        ([3, -1], 5, "prompt"),
        ([3] * 512, 5, "prompt"),
        ([3] * 500, 13, "max_tokens"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    tiny_llama: LlamaForCausalLM, prompt: list[int], max_tokens: int, field: str, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)
    with pytest.raises(RequestError) as refused:
        engine.submit("one", prompt, SamplingParams(max_tokens=max_tokens))
    assert refused.value.field == field
    assert not engine.has_work


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_unknown_tokens_are_refused_by_field(
    tiny_llama: LlamaForCausalLM, field: str, runner: str
) -> None:
    value = {260: 1.0} if field == "logit_bias" else (260,)
    with pytest.raises(RequestError, match=r"0\.\.259") as refused:
        _engine(tiny_llama, runner).submit("one", [5], SamplingParams(**{field: value}))
    assert refused.value.field == field


def test_a_running_id_is_refused(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner)
    engine.submit("one", tokens_of(3), SamplingParams(max_tokens=3))
    with pytest.raises(RequestError, match="is running"):
        engine.submit("one", tokens_of(3), SamplingParams(max_tokens=3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("seed", 2**64),
        ("stop", ("",)),
        ("min_tokens", 257),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {5: 101.0}),
        ("logprobs", 21),
    ],
)
def test_sampling_params_name_what_is_wrong(field: str, value: object) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**{field: value})
    assert refused.value.field == field


def test_a_protected_prompt_is_never_evicted(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    prompt = tokens_of(120)
    for protected, first in ((18, 18), (0, 4)):
        engine = _engine(
            tiny_llama, runner, PolicyConfig(name="window", budget=40, recent=20, interval=16)
        )
        engine.submit("one", prompt, SamplingParams(max_tokens=40, protected=protected))
        while engine.stats().generated_tokens < 30:
            engine.step()
        slots = engine._runner.slots
        for plane in slots.planes:
            held = plane.kv.positions[0, :, : slots.held(0)].tolist()
            assert all(row[: first + 1] == [*range(first), row[first]] for row in held)
            assert all(row[first] > first for row in held)


def test_a_protected_prompt_that_does_not_fit_is_refused(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)
    engine.submit("fits", tokens_of(60), SamplingParams(max_tokens=1, protected=20))
    with pytest.raises(RequestError, match=r"must not exceed 20 tokens.*raise policy\.budget"):
        engine.submit("one", tokens_of(60), SamplingParams(max_tokens=1, protected=21))
    drain(engine)
    dense = _engine(tiny_llama, runner, FULL)
    dense.submit("one", tokens_of(60), SamplingParams(max_tokens=1, protected=50))
    assert len(drain(dense)["one"]) == 1


def test_prompt_logprobs_come_once(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    """End the answer at its second token by a stop token, whose delta carries no token."""
    prompt = tokens_of(30)
    first, second = _generate(_engine(tiny_llama, runner), prompt, max_tokens=2)
    assert first != second
    engine = _engine(tiny_llama, runner)
    params = SamplingParams(max_tokens=9, prompt_logprobs=0, stop_token_ids=(second,))
    engine.submit("one", prompt, params)
    assert [len(delta.prompt_logprobs) for delta in drain(engine)["one"]] == [30, 0]


def test_no_max_tokens_fills_the_context(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner, max_length=64)
    assert len(_generate(engine, tokens_of(40), max_tokens=None)) == 24
    for prompt, field in ((64, "prompt"), (60, "min_tokens")):
        params = SamplingParams(max_tokens=None, min_tokens=1 if prompt == 64 else 5)
        with pytest.raises(RequestError) as refused:
            engine.submit("one", tokens_of(prompt), params)
        assert refused.value.field == field


def test_statistics_are_a_snapshot(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    engine = _engine(tiny_llama, runner)
    before = engine.stats()
    _generate(engine, tokens_of(30), max_tokens=5)
    assert (before.steps, before.generated_tokens, before.prefix_misses) == (0, 0, 0)
    assert engine.stats().generated_tokens == 5


def test_a_slot_that_held_nan_serves_the_next_request(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[7] = float("nan")
    engine = _engine(tiny_llama, runner, slots=2)
    engine.submit("poisoned", [9] * 30 + [7], SamplingParams(max_tokens=4))
    assert drain(engine)["poisoned"][-1].finish_reason == "error"
    engine.submit("short", [5, 6], SamplingParams(max_tokens=4))
    engine.submit("long", [9] * 48, SamplingParams(max_tokens=4))
    assert {d[-1].finish_reason for d in drain(engine).values()} == {"length"}


def test_an_answer_is_the_same_to_the_bit_among_others(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    params = SamplingParams(max_tokens=12, logprobs=2)
    alone = _engine(tiny_llama, runner, snapshot_bytes=0)
    alone.submit("asked", tokens_of(75), params)
    expected = drain(alone)["asked"]
    busy = _engine(tiny_llama, runner, snapshot_bytes=0)
    busy.submit("decodes", tokens_of(5), SamplingParams(max_tokens=200))
    for _ in range(3):
        busy.step()
    busy.submit("long", tokens_of(300), SamplingParams(max_tokens=4))
    busy.step()
    busy.submit("asked", tokens_of(75), params)
    found = drain(busy)["asked"]
    assert [delta.token for delta in found] == [delta.token for delta in expected]
    if runner == "native":  # torch multiplies batches of other shapes in other orders
        assert found == expected
