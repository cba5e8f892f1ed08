"""An answer that another engine goes on with, at every token: the same text, tokens and usage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Grammar, Progress, SamplingParams, TextDelta, TextEngine

POLICY = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
PROMPT = "Once upon a time"
SAMPLED = SamplingParams(max_tokens=20, temperature=1.5, seed=3, ignore_eos=True)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}}}
REQUESTS = {
    "greedy": SamplingParams(max_tokens=20, ignore_eos=True),
    "sampled": SAMPLED,
    "penalties": replace(SAMPLED, repetition_penalty=1.3, frequency_penalty=1.0, logit_bias={9: 5}),
    "min_tokens": replace(SAMPLED, min_tokens=15, ignore_eos=False, logit_bias={256: 9}),
    "grammar": replace(SAMPLED, max_tokens=30, grammar=Grammar("json", json.dumps(SCHEMA))),
    "logprobs": replace(SAMPLED, logprobs=3),
    "echo": replace(SAMPLED, logprobs=1, prompt_logprobs=1, echo=PROMPT),
    "h2o_request": replace(SAMPLED, kv_budget=24, kv_policy="window"),
}


@pytest.fixture
def engine(byte_tokenizer: PreTrainedTokenizerFast, tiny_llama: LlamaForCausalLM) -> TextEngine:
    config = EngineConfig(slots=1, max_length=512, draft_tokens=0, snapshot_bytes=0)
    return TextEngine(tiny_llama, byte_tokenizer, build_policy(POLICY), config)


def _answer(
    engine: TextEngine, params: SamplingParams, progress: Progress | None = None
) -> list[TextDelta]:
    engine.submit("one", engine.encode(PROMPT), params, progress=progress)
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return [delta for delta in deltas if delta.ids or delta.text or delta.finish_reason]


def _client_sees(deltas: list[TextDelta]) -> tuple[Any, ...]:
    """Return all that deltas say to a client."""
    return (
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        deltas[-1].finish_reason,
        deltas[-1].usage,
    )


def _check_at_every_token(engine: TextEngine, params: SamplingParams) -> None:
    whole = _answer(engine, params)
    assert len(whole) > 5
    for done in range(1, len(whole)):
        given = whole[:done]
        ids = tuple(token for delta in given for token in delta.ids)
        progress = Progress(tokens=ids, held=given[-1].held)
        assert _client_sees([*given, *_answer(engine, params, progress)]) == _client_sees(whole), (
            done
        )


@pytest.mark.parametrize("name", REQUESTS)
def test_at_every_token_another_engine_gives_the_rest(engine: TextEngine, name: str) -> None:
    _check_at_every_token(engine, REQUESTS[name])


def test_a_stop_text_that_has_begun_is_still_held_back(engine: TextEngine) -> None:
    params = replace(SAMPLED, logprobs=0)
    text = "".join(delta.text for delta in _answer(engine, params))
    stop = text[8:12]
    assert len(stop) == 4
    never = text[4:7] + "\N{SNOWMAN}"  # begins as the answer goes on, and then does not
    stopped = replace(params, stop=(stop, never))
    held = [delta for delta in _answer(engine, stopped) if delta.held]
    assert held, "some tokens are held back"
    _check_at_every_token(engine, stopped)


def test_an_answer_of_which_nothing_came_begins_again(engine: TextEngine) -> None:
    params = REQUESTS["echo"]
    assert _client_sees(_answer(engine, params, Progress())) == _client_sees(
        _answer(engine, params)
    )
