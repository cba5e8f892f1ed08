"""Text in, text out, over the engine."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import Grammar, RequestError, SamplingParams, TextDelta, TextEngine
from llamahome.models import write_policy

POLICY = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
CARRIED = PolicyConfig(name="carried", budget=None)


@pytest.fixture
def engine(tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast) -> TextEngine:
    config = EngineConfig(slots=2, max_length=512)
    return TextEngine(tiny_llama, byte_tokenizer, build_policy(POLICY), config, model_name="tiny")


def _answer(engine: TextEngine, prompt: list[int], params: SamplingParams) -> list[TextDelta]:
    engine.submit("one", prompt, params)
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas


def _text(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_the_deltas_are_the_decoded_answer(engine: TextEngine) -> None:
    deltas = _answer(engine, engine.encode("hello there"), SamplingParams(max_tokens=60))
    assert sum(delta.token_count for delta in deltas) == 60
    assert [delta.finish_reason for delta in deltas] == [None] * 59 + ["length"]
    assert deltas[-1].usage is not None
    assert len(_text(deltas)) > 0


def test_a_stop_text_ends_the_answer_and_frees_the_slot(engine: TextEngine) -> None:
    sampled = SamplingParams(max_tokens=60, temperature=2.0, seed=3, ignore_eos=True)
    whole = _text(_answer(engine, engine.encode("hello"), sampled))
    stop = whole[10:12]
    assert len(stop) == 2
    deltas = _answer(engine, engine.encode("hello"), replace(sampled, stop=(stop,)))
    assert _text(deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens < 60
    assert engine.stats().slots_used == 0
    assert engine.stats().requests_finished == 2


def test_cancel_forgets_the_text_too(engine: TextEngine) -> None:
    engine.submit("one", engine.encode("hello"), SamplingParams(max_tokens=60))
    engine.step()
    engine.cancel("one")
    engine.cancel("one")
    assert not engine.has_work
    assert len(_answer(engine, engine.encode("hello"), SamplingParams(max_tokens=3))) == 3


def test_a_chat_goes_through_the_models_template(engine: TextEngine) -> None:
    ids = engine.encode_chat([{"role": "user", "content": "hi"}])
    assert engine.tokenizer.decode(ids) == "<|user|>hi<eos><|assistant|>"


def test_a_model_without_a_template_says_so(engine: TextEngine) -> None:
    template, engine.tokenizer.chat_template = engine.tokenizer.chat_template, None
    try:
        with pytest.raises(RequestError, match="no chat template"):
            engine.encode_chat([{"role": "user", "content": "hi"}])
    finally:
        engine.tokenizer.chat_template = template


def test_a_loaded_model_serves_under_the_policy_it_carries(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path
) -> None:
    write_policy(tiny_llama.config, POLICY)
    tiny_llama.config.save_pretrained(tiny_folder)
    config = EngineConfig(slots=1, max_length=512, device="cpu")
    engine = TextEngine.load(ModelConfig(name=str(tiny_folder)), CARRIED, config)
    assert engine.policy == POLICY
    deltas = _answer(engine, engine.encode("x" * 100), SamplingParams(max_tokens=4))
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.evicted_tokens > 0


def test_serving_under_another_policy_than_the_trained_one_is_warned_of(
    tiny_llama: LlamaForCausalLM, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_policy(tiny_llama.config, POLICY)
    tiny_llama.config.save_pretrained(tiny_folder)
    other = PolicyConfig(name="window", budget=64, recent=32, interval=16)
    config = EngineConfig(slots=1, max_length=512, device="cpu")
    with caplog.at_level(logging.WARNING, logger="llamahome"):
        engine = TextEngine.load(ModelConfig(name=str(tiny_folder)), other, config)
    assert engine.policy == other
    assert "trained under" in caplog.text


def test_the_context_is_cut_to_the_models(tiny_folder: Path) -> None:
    config = EngineConfig(slots=1, max_length=1_000_000, device="cpu")
    engine = TextEngine.load(ModelConfig(name=str(tiny_folder)), POLICY, config)
    assert engine.max_length == 2048


@pytest.mark.parametrize("question", ["hi", "all of it?", ""])
def test_the_system_prompt_is_what_chats_share(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, question: str
) -> None:
    config = EngineConfig(slots=1, max_length=512, protect_system=True)
    protecting = TextEngine(tiny_llama, byte_tokenizer, build_policy(POLICY), config)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "and?"},
    ]
    length = protecting.system_length(chat)
    shared = str(byte_tokenizer.decode(protecting.encode_chat(chat)[:length]))
    assert shared.startswith("<|system|>Be brief.<eos><|user|>")
    assert length <= len("<|system|>Be brief.") + 1 + len("<|user|>")
    plain = TextEngine(
        tiny_llama, byte_tokenizer, build_policy(POLICY), EngineConfig(slots=1, max_length=512)
    )
    assert plain.system_length(chat) == 0


@pytest.mark.parametrize(("positions", "length"), [("absolute", 2048), ("rolling", 100_000)])
def test_rolling_positions_know_no_context(tiny_folder: Path, positions: str, length: int) -> None:
    engine = TextEngine.load(
        ModelConfig(name=str(tiny_folder)),
        replace(POLICY, positions=positions),
        EngineConfig(slots=1, max_length=100_000, device="cpu"),
    )
    assert engine.max_length == length


@pytest.fixture
def roomy(tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast) -> TextEngine:
    return TextEngine(
        tiny_llama, byte_tokenizer, build_policy(POLICY), EngineConfig(slots=4, max_length=512)
    )


def test_tokens_with_logprobs_make_up_the_text(roomy: TextEngine) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.5, seed=1, logprobs=3, ignore_eos=True)
    deltas = _answer(roomy, roomy.encode("hello"), params)
    tokens = [token for delta in deltas for token in delta.tokens]
    text = _text(deltas)
    assert len(tokens) == 40
    shown = [token for token in tokens if token.id < 256]
    assert b"".join(token.data for token in shown).decode(errors="replace") == text
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
    assert all(len(token.top) == 3 for token in tokens)
    assert all((token.logprob or 0) <= token.top[0].logprob <= 0 for token in tokens)


def test_without_logprobs_no_tokens_are_listed(engine: TextEngine) -> None:
    deltas = _answer(engine, engine.encode("hello"), SamplingParams(max_tokens=5))
    assert [delta.tokens for delta in deltas] == [()] * len(deltas)


def test_a_stop_texts_tokens_are_not_listed(roomy: TextEngine) -> None:
    params = SamplingParams(max_tokens=60, temperature=2.0, seed=3, ignore_eos=True, logprobs=0)
    whole = _text(_answer(roomy, roomy.encode("hello"), params))
    stop = whole[10:12]
    deltas = _answer(roomy, roomy.encode("hello"), replace(params, stop=(stop,)))
    tokens = [token for delta in deltas for token in delta.tokens]
    assert tokens
    assert all(token.offset < len(_text(deltas)) for token in tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "[0-9]{4}-[a-f]+x"), r"[0-9]{4}-[a-f]+x"),
        (Grammar("choice", '["yes", "no"]'), "yes|no"),
        (
            Grammar(
                "json",
                '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],'
                ' "additionalProperties": false}',
            ),
            r"\{\s*\"a\"\s*:\s*[12]\s*\}",
        ),
    ],
    ids=["regex", "choice", "json"],
)
def test_an_answer_keeps_to_its_grammar(
    roomy: TextEngine, grammar: Grammar, pattern: str, temperature: float
) -> None:
    params = SamplingParams(max_tokens=300, grammar=grammar, temperature=temperature, seed=4)
    deltas = _answer(roomy, roomy.encode("hello"), params)
    assert deltas[-1].finish_reason == "stop"
    assert re.fullmatch(pattern, _text(deltas))


def test_a_wrong_grammar_is_refused_and_leaves_nothing(engine: TextEngine) -> None:
    with pytest.raises(RequestError, match="no valid regex"):
        engine.submit("one", [5], SamplingParams(grammar=Grammar("regex", "(")))
    assert not engine.has_work


def test_a_tokenizer_error_fails_its_request_alone(engine: TextEngine) -> None:
    for name in ("bad", "good"):
        engine.submit(name, engine.encode("hello"), SamplingParams(max_tokens=6))
    engine._answers["bad"]._stream._tokenizer = "broken"  # type: ignore[assignment]
    last: dict[str, TextDelta] = {}
    while engine.has_work:
        last |= {delta.request_id: delta for delta in engine.step()}
    assert last["bad"].finish_reason == "error"
    assert "could not be decoded" in str(last["bad"].error)
    assert last["bad"].usage is not None
    assert last["good"].finish_reason == "length"
    stats = engine.stats()
    assert (stats.requests_failed, stats.requests_finished, stats.slots_used) == (1, 1, 0)
