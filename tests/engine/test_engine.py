"""The engine against transformers' generate, and requests against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, QueueFullError, RequestError, SamplingParams, TokenDelta

H2O = PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=16)
FULL = PolicyConfig(name="full", budget=None, interval=16)


RUNNERS = ["torch"]


@pytest.fixture(params=["torch", "native"], autouse=True)
def _runner(request: pytest.FixtureRequest) -> None:
    """Every test here holds for torch and for the C++ kernels in float32."""
    RUNNERS[0] = request.param


def _engine(
    model: LlamaForCausalLM,
    policy: PolicyConfig = H2O,
    *,
    slots: int = 4,
    max_queued: int = 8,
    eos: tuple[int, ...] = (),
) -> Engine:
    config = EngineConfig(
        runner=RUNNERS[0], weights="fp32", slots=slots, max_length=512, max_queued=max_queued
    )
    return Engine(model, build_policy(policy), config, eos_token_ids=eos)


def _prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 256, (length,), generator=generator).tolist()


def _drain(engine: Engine) -> dict[str, list[TokenDelta]]:
    deltas: dict[str, list[TokenDelta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def _tokens(deltas: list[TokenDelta]) -> list[int]:
    return [delta.token for delta in deltas if delta.token is not None]


def _generate(engine: Engine, prompt: list[int], **params: object) -> list[int]:
    engine.submit("one", prompt, SamplingParams(**params))
    return _tokens(_drain(engine)["one"])


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 48, 53])
@pytest.mark.parametrize("policy", [FULL, PolicyConfig(budget=128, recent=64, interval=16)])
def test_without_eviction_greedy_tokens_are_those_of_generate(
    tiny_llama: LlamaForCausalLM, policy: PolicyConfig, length: int
) -> None:
    prompt = _prompt(length)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        expected = tiny_llama.generate(  # type: ignore[misc]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=None,
        )[0, length:]
    assert _generate(_engine(tiny_llama, policy), prompt, max_tokens=40) == expected.tolist()


@pytest.mark.parametrize("name", ["h2o", "window", "random"])
def test_under_eviction_greedy_tokens_are_those_of_the_training_forward(
    tiny_llama: LlamaForCausalLM, name: str
) -> None:
    policy = PolicyConfig(name=name, budget=24, sink=4, recent=16, interval=8)
    ids = _prompt(37)
    answer = _generate(_engine(tiny_llama, policy), ids, max_tokens=30)
    attention = HybridAttention(build_policy(policy))
    attention.attach(tiny_llama)
    whole = torch.tensor([ids + answer])
    with torch.no_grad():
        logits: Tensor = tiny_llama(whole, use_cache=False, hybrid=attention).logits
    assert logits[0, len(ids) - 1 : -1].argmax(-1).tolist() == answer


def test_a_batch_gives_each_request_what_it_gets_alone(tiny_llama: LlamaForCausalLM) -> None:
    prompts = {f"r{n}": _prompt(n, seed=n) for n in (3, 16, 40, 77, 130, 9)}
    alone = {
        name: _generate(_engine(tiny_llama), prompt, max_tokens=20 + len(prompt) % 7)
        for name, prompt in prompts.items()
    }
    engine = _engine(tiny_llama, slots=3)
    for name, prompt in prompts.items():
        engine.submit(name, prompt, SamplingParams(max_tokens=20 + len(prompt) % 7))
    together = {name: _tokens(deltas) for name, deltas in _drain(engine).items()}
    assert together == alone


def test_a_seed_gives_the_same_text_in_any_company(tiny_llama: LlamaForCausalLM) -> None:
    sampled = {"max_tokens": 25, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    alone = _generate(_engine(tiny_llama), _prompt(30), **sampled)
    engine = _engine(tiny_llama)
    engine.submit("other", _prompt(60, seed=2), SamplingParams(max_tokens=40, temperature=1.0))
    engine.submit("one", _prompt(30), SamplingParams(**sampled))
    assert _tokens(_drain(engine)["one"]) == alone
    assert _generate(_engine(tiny_llama), _prompt(30), **{**sampled, "seed": 6}) != alone
    assert _generate(_engine(tiny_llama), _prompt(30), max_tokens=25) != alone


def test_it_stops_at_the_end_of_sequence_token(tiny_llama: LlamaForCausalLM) -> None:
    tokens = _generate(_engine(tiny_llama), _prompt(30), max_tokens=10)
    eos = tokens[4]
    engine = _engine(tiny_llama, eos=(eos,))
    engine.submit("one", _prompt(30), SamplingParams(max_tokens=10))
    deltas = _drain(engine)["one"]
    assert _tokens(deltas) == tokens[: tokens.index(eos)]
    assert deltas[-1].finish_reason == "stop"
    ignoring = _generate(
        _engine(tiny_llama, eos=(eos,)), _prompt(30), max_tokens=10, ignore_eos=True
    )
    assert ignoring == tokens


def test_a_stop_token_ends_the_answer_but_not_before_min_tokens(
    tiny_llama: LlamaForCausalLM,
) -> None:
    tokens = _generate(_engine(tiny_llama), _prompt(30), max_tokens=10)
    stop = tokens[4]
    params = {"max_tokens": 10, "stop_token_ids": (stop,)}
    assert _generate(_engine(tiny_llama), _prompt(30), **params) == tokens[: tokens.index(stop)]
    ignoring = _generate(_engine(tiny_llama), _prompt(30), **params, ignore_eos=True)
    assert ignoring == tokens[: tokens.index(stop)]
    longer = _generate(_engine(tiny_llama), _prompt(30), **params, min_tokens=7)
    assert len(longer) >= 7
    assert stop not in longer[:7]


def test_logprobs_are_those_of_the_model_over_the_whole_text(tiny_llama: LlamaForCausalLM) -> None:
    prompt = _prompt(30)
    engine = _engine(tiny_llama, FULL)
    engine.submit("one", prompt, SamplingParams(max_tokens=12, temperature=0.9, seed=2, logprobs=2))
    deltas = _drain(engine)["one"]
    answer = _tokens(deltas)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([prompt + answer])).logits[0, 29:-1]
    expected = logits.double().log_softmax(dim=-1)
    own = expected[torch.arange(12), torch.tensor(answer)].tolist()
    assert [delta.logprob for delta in deltas] == pytest.approx(own, abs=1e-4)
    likeliest = [[token for token, _ in delta.top_logprobs] for delta in deltas]
    assert likeliest == expected.topk(2).indices.tolist()


@pytest.mark.parametrize("length", [1, 2, 16, 53])
def test_prompt_logprobs_are_those_of_the_model(tiny_llama: LlamaForCausalLM, length: int) -> None:
    prompt = _prompt(length)
    engine = _engine(tiny_llama, FULL)
    params = {"prompt_logprobs": 2, "temperature": 1.0, "seed": 0}
    engine.submit("scored", prompt, SamplingParams(max_tokens=0, **params))
    engine.submit("answered", prompt, SamplingParams(max_tokens=3, **params))
    deltas = _drain(engine)
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


def test_usage_counts_what_was_kept_and_evicted(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama)
    engine.submit("one", _prompt(100), SamplingParams(max_tokens=21))
    last = _drain(engine)["one"][-1]
    assert last.finish_reason == "length"
    usage = last.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 21)
    # The last token is never fed back: 120 went in, 7 chunks of 16 complete, 8 in the open one.
    assert (usage.kept_tokens, usage.evicted_tokens) == (40 + 8, 120 - 48)
    assert usage.kv_bytes < usage.kv_bytes_dense
    assert engine.stats().evicted_tokens == 72
    assert engine.stats().kv_bytes == 4 * usage.kv_bytes


def test_a_long_prompt_delays_others_by_a_chunk_at_a_time(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama)
    engine.submit("short", _prompt(5), SamplingParams(max_tokens=50))
    engine.step()
    engine.submit("long", _prompt(160), SamplingParams(max_tokens=5))
    for _ in range(9):
        assert [delta.request_id for delta in engine.step()] == ["short"]


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_cancel_frees_the_slot_at_once(tiny_llama: LlamaForCausalLM, steps: int) -> None:
    engine = _engine(tiny_llama, slots=1)
    engine.submit("gone", _prompt(40), SamplingParams(max_tokens=50))
    for _ in range(steps):
        engine.step()
    engine.cancel("gone")
    engine.cancel("never there")
    stats = engine.stats()
    assert (stats.slots_used, stats.queued, stats.requests_cancelled) == (0, 0, 1)
    expected = _generate(_engine(tiny_llama, slots=1), _prompt(30), max_tokens=5)
    assert _generate(engine, _prompt(30), max_tokens=5) == expected


def test_a_request_whose_logits_break_fails_alone(tiny_llama: LlamaForCausalLM) -> None:
    poison = 17
    tiny_llama.model.embed_tokens.weight.data[poison] = float("nan")
    prompt = [t for t in _prompt(40) if t != poison]
    engine = _engine(tiny_llama)
    engine.submit("good", prompt, SamplingParams(max_tokens=4))
    engine.submit("bad", [*prompt[:10], poison], SamplingParams(max_tokens=4))
    deltas = _drain(engine)
    assert deltas["bad"][-1].finish_reason == "error"
    assert "not finite" in str(deltas["bad"][-1].error)
    assert len(_tokens(deltas["good"])) == 4
    assert engine.stats().requests_failed == 1
    assert _generate(engine, prompt, max_tokens=4) == _tokens(deltas["good"])


def test_the_queue_has_an_end(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama, slots=1, max_queued=1)
    engine.submit("a", _prompt(4), SamplingParams(max_tokens=2))
    engine.submit("b", _prompt(4), SamplingParams(max_tokens=2))
    with pytest.raises(QueueFullError, match="max_queued=1"):
        engine.submit("c", _prompt(4), SamplingParams(max_tokens=2))
    assert set(_drain(engine)) == {"a", "b"}


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
    tiny_llama: LlamaForCausalLM, prompt: list[int], max_tokens: int, field: str
) -> None:
    engine = _engine(tiny_llama)
    with pytest.raises(RequestError) as refused:
        engine.submit("one", prompt, SamplingParams(max_tokens=max_tokens))
    assert refused.value.field == field
    assert not engine.has_work


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_unknown_tokens_are_refused_by_field(tiny_llama: LlamaForCausalLM, field: str) -> None:
    value = {260: 1.0} if field == "logit_bias" else (260,)
    with pytest.raises(RequestError, match=r"0\.\.259") as refused:
        _engine(tiny_llama).submit("one", [5], SamplingParams(**{field: value}))
    assert refused.value.field == field


def test_a_running_id_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama)
    engine.submit("one", _prompt(3), SamplingParams(max_tokens=3))
    with pytest.raises(RequestError, match="is running"):
        engine.submit("one", _prompt(3), SamplingParams(max_tokens=3))


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


def test_a_protected_prompt_is_never_evicted(tiny_llama: LlamaForCausalLM) -> None:
    prompt = _prompt(120)
    for protected, first in ((18, 18), (0, 4)):
        engine = _engine(tiny_llama, PolicyConfig(name="window", budget=40, recent=20, interval=16))
        engine.submit("one", prompt, SamplingParams(max_tokens=40, protected=protected))
        while engine.stats().generated_tokens < 30:
            engine.step()
        slots = engine._runner.slots
        for plane in slots.planes:
            held = plane.kv.positions[0, :, : slots.held(0)].tolist()
            assert all(row[: first + 1] == [*range(first), row[first]] for row in held)
            assert all(row[first] > first for row in held)


def test_a_protected_prompt_that_does_not_fit_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama)
    engine.submit("fits", _prompt(60), SamplingParams(max_tokens=1, protected=20))
    with pytest.raises(RequestError, match=r"must not exceed 20 tokens.*raise policy\.budget"):
        engine.submit("one", _prompt(60), SamplingParams(max_tokens=1, protected=21))
    _drain(engine)
    dense = _engine(tiny_llama, FULL)
    dense.submit("one", _prompt(60), SamplingParams(max_tokens=1, protected=50))
    assert len(_drain(dense)["one"]) == 1


def test_a_slot_that_held_nan_serves_the_next_request(tiny_llama: LlamaForCausalLM) -> None:
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[7] = float("nan")
    engine = _engine(tiny_llama, slots=2)
    engine.submit("poisoned", [9] * 30 + [7], SamplingParams(max_tokens=4))
    assert _drain(engine)["poisoned"][-1].finish_reason == "error"
    engine.submit("short", [5, 6], SamplingParams(max_tokens=4))
    engine.submit("long", [9] * 48, SamplingParams(max_tokens=4))
    assert {d[-1].finish_reason for d in _drain(engine).values()} == {"length"}
