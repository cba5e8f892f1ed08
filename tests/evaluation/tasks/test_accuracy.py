"""Answers of the engine, and how they are counted."""

from __future__ import annotations

import re

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import TextEngine
from llamahome.evaluation import Question, accuracy
from llamahome.evaluation.intervals import wilson
from llamahome.evaluation.reading import answers, kept_positions, sized
from llamahome.evaluation.tasks.accuracy import GREEDY
from tests.evaluation.cases import EXACT, FULL, random_ids


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
        Question(prompt=steered, expected=n, depth=d % 2, kind="said")
        for d, n in enumerate([*numbers, "987654321987"])
    ]
    questions.append(Question(prompt=prompt, expected="987654321987", depth=99.0, kind="unsaid"))
    result = accuracy(tiny_llama, byte_tokenizer, questions, FULL, EXACT)
    assert (result.right, result.asked) == (len(numbers), len(numbers) + 2)
    assert result.by_depth[99.0] == (0, 1)
    assert result.by_kind == {"said": (len(numbers), len(numbers) + 1), "unsaid": (0, 1)}
    assert sum(right for right, _ in result.by_depth.values()) == result.right
    assert result.accuracy == len(numbers) / (len(numbers) + 2)
    assert result.interval == wilson(result.right, result.asked)
    # 2 layers, 2 KV heads, keys and values of 16 float32; the answer's last token is not read.
    assert usage.completion_tokens == 24
    assert result.kv.dense == result.kv.final == 2 * 2 * 2 * 16 * 4 * (40 + 23)


def test_an_answers_kv_bytes_are_those_of_its_slot(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = build_policy(PolicyConfig(budget=24, sink=4, recent=16, interval=8))
    [prompt] = random_ids(40)
    question = Question(prompt=prompt, expected="1", depth=0.0, kind="digits")
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
