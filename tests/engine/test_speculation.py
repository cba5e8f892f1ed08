"""Drafts change how many steps an answer takes, and not a bit of it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, Grammar, SamplingParams, TextEngine, TokenDelta
from llamahome.engine.request import Request
from llamahome.engine.runners.contract import RowInput
from llamahome.engine.sampling.prompt_lookup import PromptLookup
from llamahome.engine.scheduler import Batch
from llamahome.engine.speculation import Speculation
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import native, random_llama, skip_unless_here, tokens_of
from tests.policies import built

H2O = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
FULL = PolicyConfig.dense(interval=16)
ISAS = ["avx512-vnni", "avx2", "portable"]


def _draft(tokens: list[int], most: int) -> list[int]:
    return PromptLookup(tokens, most).draft(most)


def test_a_draft_is_what_followed_last() -> None:
    assert _draft([1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], 3) == [5, 8, 1]
    assert _draft([7, 2, 3, 4, 5, 6, 2, 3], 2) == [4, 5], "two tokens are enough"
    assert _draft([1, 2, 3, 4, 5], 3) == []
    assert _draft([1], 3) == []


def test_a_repetition_is_expected_to_go_on() -> None:
    assert _draft([5, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_a_growing_text_is_looked_up_as_if_it_were_new() -> None:
    text = random.Random(0).choices(range(4), k=300)
    tokens = text[:20]
    grown = PromptLookup(tokens, 4)
    for token in text[20:]:
        tokens.append(token)
        assert grown.draft(4) == _draft(list(tokens), 4)


def _batch(*requests: Request) -> Batch:
    return Batch(list(requests), [1] * len(requests), len(requests))


def _request(slot: int = 0, **params: Any) -> Request:
    """Return a request that repeats itself, with all but its last token computed."""
    tokens = [1, 2] * 9
    return Request(str(slot), tokens, 17, SamplingParams(**params), slot=slot, computed=17)


def _speculation(most: int, lengths: tuple[int, ...] = (0, 0, 0)) -> Speculation:
    runner = native(random_llama(), build_policy(H2O))
    runner.slots.lengths[:] = lengths
    return Speculation(runner, most)


def _drafts(speculation: Speculation, *requests: Request) -> list[list[int]]:
    speculation.draft(_batch(*requests))
    return [request.draft for request in requests]


def test_drafts_share_what_a_step_may_verify() -> None:
    assert _drafts(_speculation(6), _request(0), _request(2)) == [[1, 2, 1], [1, 2, 1]]
    assert _drafts(_speculation(1), _request(0), _request(2)) == [[], []]


def test_a_request_in_prefill_has_no_draft_and_takes_no_share() -> None:
    reading = Request("r", [1, 2] * 9, 18, SamplingParams(), slot=1, computed=17)
    assert _drafts(_speculation(3), _request(0), reading) == [[1, 2, 1], []]


@pytest.mark.parametrize(("length", "max_tokens", "most"), [(12, 99, 3), (15, 99, 0), (0, 4, 2)])
def test_drafts_end_with_the_chunk_and_the_answer(length: int, max_tokens: int, most: int) -> None:
    (found,) = _drafts(_speculation(8, (length, 0, 0)), _request(max_tokens=max_tokens))
    assert len(found) == most


def test_a_rejected_draft_makes_the_next_one_shorter() -> None:
    speculation, request = _speculation(8), _request()
    runner = speculation._runner
    assert runner is not None
    lengths = []
    for accepted in (8, 0, 1, 3, 8):
        request.computed = 17
        runner.slots.lengths[0] = 0
        (draft,) = _drafts(speculation, request)
        lengths.append(len(draft))
        runner.forward([RowInput(slot=0, tokens=[2, *draft], every="logits", drafted=True)])
        speculation.accept([request], [min(accepted, lengths[-1])])
        assert request.draft == []
    assert lengths == [8, 8, 1, 3, 7]
    assert (speculation.drafted, speculation.accepted) == (27, 8 + 0 + 1 + 3 + 7)


POLICIES = {
    "full": FULL,
    "h2o": H2O,
    "h2o_decay": replace(H2O, decay=32),
    "h2o_max_pattern": replace(H2O, group="max", pattern={"L0H1": None, "L1": 64}),
    "h2o_long": PolicyConfig(budget=1000, sink=4, recent=256, interval=256),
    "snapkv": PolicyConfig(name="snapkv", budget=40, recent=20, interval=16, window=8),
    "tova": PolicyConfig(name="tova", budget=40, recent=20, interval=16),
    "window": PolicyConfig(name="window", budget=40, recent=20, interval=16),
    "learned": PolicyConfig(name="learned", budget=40, recent=20, interval=16),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_a_slot_after_accept_is_that_of_single_steps(name: str, int8: bool, isa: str) -> None:
    """Compare bit for bit, for any draft and any number of accepted tokens."""
    skip_unless_here(isa)
    policy = built(POLICIES[name], random_llama())
    options: dict[str, Any] = {"int8": int8, "isa": isa}
    if int8:
        options["kv_dtype"] = torch.float16
    drafting, single = (
        native(random_llama(), policy, threads=threads, **options) for threads in (3, 1)
    )
    prompt = tokens_of(500 if name == "h2o_long" else 37, seed=1)
    for runner in (drafting, single):
        for slot in (0, 2):
            at = 0
            while at < len(prompt):
                room = runner.slots.room(slot)
                runner.forward([RowInput(slot=slot, tokens=prompt[at : at + room])])
                at += room
    draw = random.Random(2)
    for step in range(40):
        width = min(draw.randint(2, 11), drafting.slots.room(0))
        tokens = tokens_of(width, seed=100 + step)
        other = RowInput(slot=2, tokens=tokens_of(1, seed=step))
        row = RowInput(slot=0, tokens=tokens, every="logits", drafted=width > 1)
        got = drafting.forward([row, other])
        kept = draw.randint(1, width) if width > 1 else 1
        if width > 1:
            drafting.accept({0: kept})
        wanted = [single.forward([RowInput(slot=0, tokens=[t])]).logits[0] for t in tokens[:kept]]
        assert torch.equal(got.every[0][:kept], torch.stack(wanted)), step
        assert torch.equal(got.logits[1], single.forward([other]).logits[0]), step
    for slot in (0, 2):
        found, expected = drafting.slots.save(slot), single.slots.save(slot)
        assert found.length == expected.length
        assert found.tensors.keys() == expected.tensors.keys()
        for key in found.tensors:
            assert torch.equal(*(_entries(state.tensors, key) for state in (found, expected))), key


def _entries(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """Cut saved keys to the entries that are held: they are saved in whole tiles."""
    if not key.endswith(".keys"):
        return tensors[key]
    count = tensors[key.replace("keys", "positions")].shape[1]
    return tensors[key].transpose(-1, -2).flatten(1, 2)[:, :count]


def _engine(policy: PolicyConfig, draft_tokens: int, **options: Any) -> Engine:
    defaults = {"slots": 4, "max_length": 1024, "runner": "native", "snapshot_bytes": 0}
    chosen = {"weights": "auto", "draft_tokens": draft_tokens, **defaults, **options}
    return build_engine(random_llama(), policy, eos={2}, **chosen)


def _answers(engine: Engine, requests: list[SamplingParams]) -> dict[str, list[TokenDelta]]:
    for number, params in enumerate(requests):
        phrase = tokens_of(11, seed=number)
        engine.submit(str(number), phrase * 4 + tokens_of(number, seed=9) + phrase[:5], params)
    return drain(engine)


FEW = {7: 60.0, 8: 60.0, 9: 60.0}  # tokens to answer with, so that drafts are often accepted
REQUESTS = [
    SamplingParams(max_tokens=90, logit_bias=FEW),
    SamplingParams(max_tokens=61, logit_bias=FEW, logprobs=3),
    SamplingParams(max_tokens=70, logit_bias=FEW, temperature=4.0, seed=5),
    SamplingParams(max_tokens=70, logit_bias=FEW, temperature=2.0, top_k=2, seed=6),
    SamplingParams(max_tokens=50, logit_bias=FEW, repetition_penalty=1.3, frequency_penalty=0.4),
    SamplingParams(max_tokens=50, logit_bias={**FEW, 2: 60.0}, min_tokens=20),
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=40, prompt_logprobs=1),
    SamplingParams(max_tokens=40),
]


@pytest.mark.parametrize("weights", ["int8", "fp32"])
@pytest.mark.parametrize("name", ["full", "h2o", "window", "learned"])
def test_answers_are_those_without_drafts(name: str, weights: str) -> None:
    drafting = _engine(POLICIES[name], 8, weights=weights)
    plain = _engine(POLICIES[name], 0, weights=weights)
    found, expected = (_answers(engine, REQUESTS) for engine in (drafting, plain))
    assert found == expected
    stats = drafting.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.steps < plain.stats().steps
    assert stats.generated_tokens == plain.stats().generated_tokens
    assert plain.stats().drafted_tokens == 0


def test_a_stop_token_in_a_draft_ends_the_answer() -> None:
    """Put it into the prompt, so that drafts have it, and into some answers, by their seeds."""
    outcomes = []
    for most in (8, 0):
        engine = _engine(H2O, most)
        for seed in range(40):
            params = SamplingParams(
                max_tokens=60, logit_bias=FEW, temperature=9.0, seed=seed, stop_token_ids=(9,)
            )
            engine.submit("one", [7, 8, 7, 8, 9] * 5, params)
            outcomes.append(drain(engine)["one"])
        assert (engine.stats().accepted_tokens > 10) == (most > 0)
    assert outcomes[:40] == outcomes[40:]
    assert {deltas[-1].finish_reason for deltas in outcomes} == {"stop"}


def test_the_next_turn_starts_after_the_accepted_tokens() -> None:
    """Take the snapshot at an answer's end from the accepted tokens alone."""
    params = SamplingParams(max_tokens=50, logit_bias=FEW)
    engine = _engine(H2O, 8, snapshot_bytes=2**24)
    phrase = tokens_of(11, seed=0)
    engine.submit("first", phrase * 4, params)
    said = tokens_in(drain(engine)["first"])
    assert engine.stats().accepted_tokens > 0
    follow_up = phrase * 4 + said + tokens_of(9, seed=3)
    engine.submit("second", follow_up, params)
    warm = drain(engine)["second"]
    assert engine.stats().prefix_hits == 1
    cold = _engine(H2O, 0)
    cold.submit("second", follow_up, params)
    assert [d.token for d in warm] == [d.token for d in drain(cold)["second"]]


def _text_engine(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, draft_tokens: int
) -> TextEngine:
    config = EngineConfig(slots=2, max_length=512, runner="native", draft_tokens=draft_tokens)
    return TextEngine(model, tokenizer, build_policy(H2O), config, model_name="tiny")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stop": ("ab",)},
        {"logprobs": 2, "stop": ("b",)},
        {"grammar": Grammar("regex", "(ab|ba){20,40}"), "logit_bias": {}},
    ],
    ids=["plain", "stop", "logprobs", "grammar"],
)
def test_text_and_usage_are_those_without_drafts(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    changes: dict[str, Any],
) -> None:
    a, b, c = (byte_tokenizer.encode(letter)[0] for letter in "abc")
    # The letter c leads the answer for a while, so that a stop text comes within a draft.
    own: dict[str, Any] = {"logit_bias": {a: 18.0, b: 18.0, c: 21.0}, "frequency_penalty": 0.1}
    params = SamplingParams(max_tokens=80, ignore_eos=True, **{**own, **changes})
    outcomes = []
    for draft_tokens in (8, 0):
        engine = _text_engine(tiny_llama, byte_tokenizer, draft_tokens)
        engine.submit("one", engine.encode("cccccccc abab cccc"), params)
        deltas = []
        while engine.has_work:
            deltas += engine.step()
        usage = deltas[-1].usage
        assert usage is not None
        outcomes.append(
            (
                "".join(delta.text for delta in deltas),
                [token for delta in deltas for token in delta.tokens],
                sum(delta.token_count for delta in deltas),
                usage.completion_tokens,
                deltas[-1].finish_reason,
            )
        )
        if draft_tokens:
            assert engine.stats().accepted_tokens > 0
            assert max(delta.token_count for delta in deltas) > 1
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2] == outcomes[0][3]
