"""Texts of the tokens in frames of the lens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import SamplingParams, TextDelta, TextEngine
from llamahome.lens import LensFrame, joined

POLICY = PolicyConfig(budget=40, sink=4, recent=20, interval=16)
PARAMS = SamplingParams(max_tokens=30, temperature=2.0, seed=3, ignore_eos=True, lens=True)


@pytest.fixture
def engine(tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast) -> TextEngine:
    config = EngineConfig(slots=2, max_length=512)
    return TextEngine(tiny_llama, byte_tokenizer, build_policy(POLICY), config, model_name="tiny")


def _answer(engine: TextEngine, params: SamplingParams) -> list[TextDelta]:
    engine.submit("one", engine.encode("Zürich, 日本"), params)
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas


def _whole(deltas: list[TextDelta]) -> LensFrame:
    whole = joined([delta.lens for delta in deltas if delta.lens is not None])
    assert whole is not None
    assert len(whole.texts) == len(whole.ids)
    return whole


def test_characters_that_are_spread_over_tokens_are_whole_once(engine: TextEngine) -> None:
    whole = _whole(_answer(engine, PARAMS))
    assert whole.texts[:3] == ("Z", "", "ü"), "a token is a byte here"
    assert "".join(whole.texts).startswith("Zürich, 日本")


def test_an_answer_that_a_stop_text_ends_has_a_last_frame(engine: TextEngine) -> None:
    text = "".join(delta.text for delta in _answer(engine, PARAMS))
    deltas = _answer(engine, replace(PARAMS, stop=(text[4:6],)))
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].lens is not None
    read = engine.encode("Zürich, 日本") + [token for delta in deltas for token in delta.ids]
    assert list(_whole(deltas).ids) == read
