"""Budgets, policies and adapters by request: what they change, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaForCausalLM

from llamahome.config import PolicyConfig
from llamahome.engine import Engine, RequestError, SamplingParams, Usage
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import tokens_of

H2O = PolicyConfig(name="h2o", budget=40, sink=4, recent=20, interval=8)
FULL = PolicyConfig.dense(interval=8)
PROMPT = tokens_of(70, seed=1)


def _engine(
    model: LlamaForCausalLM, runner: str, policy: PolicyConfig = H2O, **options: Any
) -> Engine:
    return build_engine(model, policy, **{"runner": runner, "max_length": 256, **options})


def _ask(engine: Engine, prompt: list[int] = PROMPT, **params: Any) -> tuple[list[int], Usage]:
    engine.submit("one", prompt, SamplingParams(**{"max_tokens": 20, **params}))
    deltas = drain(engine)["one"]
    assert deltas[-1].usage is not None
    return tokens_in(deltas), deltas[-1].usage


@pytest.mark.parametrize(
    ("budget", "recent"), [(40, 20), (39, 19), (30, 15), (20, 10), (16, 8), (12, 8)]
)
def test_a_smaller_budget_is_that_of_an_engine_built_with_it(
    tiny_llama: LlamaForCausalLM, runner: str, budget: int, recent: int
) -> None:
    """Half of it goes to recent tokens, but never less than a chunk."""
    built = PolicyConfig(name="h2o", budget=budget, sink=4, recent=recent, interval=8)
    expected, usage = _ask(_engine(tiny_llama, runner, built))
    tokens, own = _ask(_engine(tiny_llama, runner), kv_budget=budget)
    assert tokens == expected
    assert (own.kept_tokens, own.peak_tokens) == (usage.kept_tokens, usage.peak_tokens)
    assert own.peak_tokens == budget + 8


def test_a_budget_of_up_to_1_is_a_share_of_the_longest_text(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)  # max_length=256
    tokens, own = _ask(engine, kv_budget=0.125)
    assert (tokens, own.peak_tokens) == (_ask(engine, kv_budget=32)[0], 32 + 8)


@pytest.mark.parametrize("name", ["window", "snapkv", "tova", "keydiff", "value_norm", "random"])
def test_another_policy_is_that_of_an_engine_built_with_it(
    tiny_llama: LlamaForCausalLM, runner: str, name: str
) -> None:
    built = PolicyConfig(name=name, budget=40, sink=4, recent=20, interval=8)
    expected, _ = _ask(_engine(tiny_llama, runner, built))
    engine = _engine(tiny_llama, runner)
    assert _ask(engine, kv_policy=name)[0] == expected
    assert _ask(engine)[0] == _ask(_engine(tiny_llama, runner))[0]


def test_another_policy_with_a_budget_of_its_own(tiny_llama: LlamaForCausalLM, runner: str) -> None:
    built = PolicyConfig(name="window", budget=24, sink=4, recent=12, interval=8)
    expected, _ = _ask(_engine(tiny_llama, runner, built))
    assert _ask(_engine(tiny_llama, runner), kv_policy="window", kv_budget=24)[0] == expected
    assert _ask(_engine(tiny_llama, runner, FULL), kv_policy="window", kv_budget=24)[0] == expected


def test_full_attention_as_far_as_a_slot_has_room(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    engine = _engine(tiny_llama, runner)
    dense = _engine(tiny_llama, runner, FULL)
    for prompt, answer in ((43, 5), (20, 28), (1, 47)):
        expected, usage = _ask(dense, PROMPT[:prompt], max_tokens=answer)
        tokens, own = _ask(engine, PROMPT[:prompt], max_tokens=answer, kv_policy="full")
        assert tokens == expected
        assert own.evicted_tokens == usage.evicted_tokens == 0


def test_budgets_of_heads_are_cut_where_they_are_larger(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    pattern: dict[str, int | None] = {"L0H1": None, "L1H0": 64}
    engine = _engine(
        tiny_llama, runner, PolicyConfig(budget=40, sink=4, recent=20, interval=8, pattern=pattern)
    )
    uniform = PolicyConfig(budget=30, sink=4, recent=15, interval=8)
    expected, _ = _ask(_engine(tiny_llama, runner, uniform))
    assert _ask(engine, kv_budget=30)[0] == expected
    cut: dict[str, int | None] = {"L0H1": 60, "L1H0": 60}
    between = PolicyConfig(budget=40, sink=4, recent=20, interval=8, pattern=cut)
    expected, _ = _ask(_engine(tiny_llama, runner, between))
    assert _ask(engine, kv_budget=60)[0] == expected


def test_rows_of_all_kinds_share_steps_and_stay_themselves(
    tiny_llama: LlamaForCausalLM, runner: str
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "small": {"kv_budget": 20},
        "window": {"kv_policy": "window"},
        "snapkv": {"kv_policy": "snapkv", "kv_budget": 30},
        "protected": {"protected": 15},
        "full": {"kv_policy": "full"},
        "again": {},
    }
    prompts = {
        kind: tokens_of(24 if kind == "full" else 50 + 7 * i, seed=i)
        for i, kind in enumerate(kinds)
    }
    alone = {
        kind: _ask(_engine(tiny_llama, runner), prompts[kind], **params)[0]
        for kind, params in kinds.items()
    }
    engine = _engine(tiny_llama, runner, slots=3)
    for kind, params in kinds.items():
        engine.submit(kind, prompts[kind], SamplingParams(max_tokens=20, **params))
    together = {kind: tokens_in(deltas) for kind, deltas in drain(engine).items()}
    assert together == alone


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"kv_budget": 41}, r"kv_budget=41: a slot keeps at most 40 entries"),
        ({"kv_budget": 11}, r"kv_budget=11: it must hold the 4 .*ask for at least 12"),
        ({"kv_budget": 0}, r"kv_budget=0: "),
        ({"kv_budget": 0.01}, r"kv_budget=3: it must hold the 4 .*ask for at least 12"),
        ({"kv_budget": 1}, r"kv_budget=256: a slot keeps at most 40 entries"),
        ({"kv_budget": -5}, r"kv_budget=-5: "),
        ({"kv_policy": "h3o"}, r"kv_policy='h3o': .*h2o"),
        ({"kv_policy": "carried"}, r"kv_policy='carried': "),
        (
            {"kv_policy": "full", "max_tokens": 20},
            r"kv_policy='full': a slot holds 48 entries; .* are 90",
        ),
        ({"kv_policy": "full", "kv_budget": 20}, r"kv_budget=20: full keeps everything"),
        ({"protected": 21}, r"protected='21 tokens': .*exceed 20 tokens"),
        ({"protected": 13, "kv_budget": 20}, r"protected='13 tokens': .*exceed 10 tokens"),
        ({"adapter": "law"}, r"adapter='law': the adapters are: none; name some in engine"),
        ({"max_tokens": 200}, r"max_tokens=200: .*exceed the context of 256; .* at most 186"),
        ({"stop_token_ids": (2.0,)}, r"stop_token_ids=2\.0: token ids are whole numbers"),
        ({"logit_bias": {260: 1.0}}, r"logit_bias=260: token ids are whole numbers in 0\.\.259"),
        ({"stop_token_ids": (-1,)}, r"stop_token_ids=-1: token ids"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    tiny_llama: LlamaForCausalLM, params: dict[str, Any], reason: str
) -> None:
    engine = _engine(tiny_llama, "torch")
    with pytest.raises(RequestError, match=reason) as refused:
        engine.submit("one", PROMPT, SamplingParams(**{"max_tokens": 20, **params}))
    assert refused.value.field in params
    assert not engine.has_work


def test_an_engine_that_never_evicts_asks_for_both(tiny_llama: LlamaForCausalLM) -> None:
    engine = _engine(tiny_llama, "torch", FULL)
    with pytest.raises(RequestError, match=r"kv_policy='h2o': .*name a kv_budget, too"):
        engine.submit("one", PROMPT, SamplingParams(max_tokens=9, kv_policy="h2o"))
    with pytest.raises(
        RequestError, match="kv_budget=20: full keeps everything; name another kv_policy"
    ):
        engine.submit("one", PROMPT, SamplingParams(max_tokens=9, kv_budget=20))
    assert len(_ask(engine, kv_policy="h2o", kv_budget=200)[0]) == 20


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_a_slot_left_with_a_broken_prompt_serves_the_next(
    tiny_llama: LlamaForCausalLM, runner: str, end: str
) -> None:
    """Leave NaN in the slot behind the next request's entries, where nothing may read it."""
    poison = 17
    tiny_llama.model.embed_tokens.weight.data[poison] = float("nan")
    clean = [3 if token == poison else token for token in PROMPT]
    expected = _ask(_engine(tiny_llama, runner), clean[:5])[0]
    engine = _engine(tiny_llama, runner, slots=2, prefill_tokens=8)
    engine.submit("long", clean, SamplingParams(max_tokens=60))
    while engine.stats().generated_tokens == 0:
        engine.step()
    engine.submit("broken", [poison] * 30, SamplingParams(max_tokens=4))
    for _ in range(3):
        engine.step()
    getattr(engine, end)("broken")
    engine.submit("next", clean[:5], SamplingParams(max_tokens=20))
    deltas = drain(engine)
    assert tokens_in(deltas["next"]) == expected
    assert deltas["long"][-1].finish_reason == "length"
