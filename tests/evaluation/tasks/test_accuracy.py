"""Questions, and how answers to them are counted."""

from __future__ import annotations

import re

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import ConfigError, EngineConfig, PolicyConfig
from llamahome.engine import TextEngine
from llamahome.evaluation import Question, accuracy, needles, recalls
from llamahome.evaluation.reading import answers, kept_positions, sized
from llamahome.evaluation.tasks.accuracy import GREEDY
from llamahome.evaluation.text import load_text
from tests.evaluation.cases import EXACT, FULL, TEXT, random_ids


@pytest.mark.parametrize("depths", [1, 4])
def test_a_needle_is_at_its_depth_and_the_prompt_fits(
    byte_tokenizer: PreTrainedTokenizerFast, depths: int
) -> None:
    asked = list(needles(byte_tokenizer, TEXT, length=600, depths=depths, samples=2, seed=1))
    assert len(asked) == 2 * depths
    places = []
    for question in asked:
        assert 560 < len(question.prompt) <= 600
        text = byte_tokenizer.decode(question.prompt)
        assert text.count(question.expected) == 1
        places.append(text.index(question.expected))
    assert places[:depths] == sorted(places[:depths])
    assert len({q.expected for q in asked}) == len(asked)
    again = list(needles(byte_tokenizer, TEXT, length=600, depths=depths, samples=2, seed=1))
    assert again == asked


def test_a_list_names_each_key_once(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for question in recalls(byte_tokenizer, length=700, depths=3, samples=2, seed=1):
        assert 660 < len(question.prompt) <= 700
        text = byte_tokenizer.decode(question.prompt)
        listed = dict(re.findall(r"([a-z]+ [a-z]+): (\d+)", text))
        [asked] = re.findall(r"beside '([a-z]+ [a-z]+)'", text)
        assert listed[asked] == question.expected


def test_a_prompt_too_short_for_its_question_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ConfigError, match=r"eval\.context=50: a needle"):
        list(needles(byte_tokenizer, TEXT, length=50, depths=1, samples=1, seed=0))


def test_a_right_answer_is_the_whole_number(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Check numbers that the tiny model says, whole, and others, cut and missing."""
    [prompt] = random_ids(30)
    steered = [*byte_tokenizer.encode("7" * 40)]
    engine = TextEngine(tiny_llama, byte_tokenizer, FULL, sized(EXACT, 80))
    [(said, usage)] = answers(engine, [(steered, GREEDY)])
    numbers = re.findall(r"\d+", said)
    questions = [
        Question(prompt=steered, expected=n, depth=d)
        for d, n in enumerate([*numbers, "987654321987"])
    ]
    questions.append(Question(prompt=prompt, expected="987654321987", depth=99.0))
    result = accuracy(tiny_llama, byte_tokenizer, questions, FULL, EXACT)
    assert (result.right, result.asked) == (len(numbers), len(numbers) + 2)
    assert result.by_depth[99.0] == 0
    # 2 layers, 2 KV heads, keys and values of 16 float32; the answer's last token is not read.
    assert usage.completion_tokens == 24
    assert result.kv.dense == result.kv.final == 2 * 2 * 2 * 16 * 4 * (40 + 23)


def test_an_answers_kv_bytes_are_those_of_its_slot(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = build_policy(PolicyConfig(budget=24, sink=4, recent=16, interval=8))
    [prompt] = random_ids(40)
    question = Question(prompt=prompt, expected="1", depth=0.0)
    result = accuracy(tiny_llama, byte_tokenizer, [question], policy, EXACT)
    per_token = 2 * 2 * 2 * 16 * 4
    read = result.kv.dense // per_token
    assert 40 <= read <= 40 + 23
    assert result.kv.final == per_token * (24 + read % 8)
    assert result.kv.final < result.kv.peak < 2 * per_token * (24 + 8)


@pytest.mark.parametrize("engine", [EXACT, EngineConfig(), EngineConfig(runner="torch")], ids=str)
def test_kept_positions_are_the_policys(tiny_llama: LlamaForCausalLM, engine: EngineConfig) -> None:
    policy = build_policy(PolicyConfig(name="window", budget=24, sink=4, recent=16, interval=8))
    [ids] = random_ids(44)
    kept = kept_positions(tiny_llama, ids, policy, engine, layer_idx=1, head=1)
    assert kept[3] == [*range(4), *range(12, 32)]
    assert kept[-1] == [*range(4), *range(20, 44)]


def test_texts_that_ship_are_long() -> None:
    for name in ("persuasion", "northanger_abbey", "pydoc"):
        assert len(load_text(name)) > 400_000
    with pytest.raises(FileNotFoundError, match="one of northanger_abbey, persuasion, pydoc"):
        load_text("emma_")
