"""Questions, greedy answers against transformers' generate, and how they are counted."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots
from llamahome.config import ConfigError, PolicyConfig
from llamahome.evaluation import Question, accuracy, needles, recalls
from llamahome.evaluation.kept import kept_positions
from llamahome.evaluation.tasks.greedy import answer
from llamahome.evaluation.text import load_text

FULL = PolicyConfig(name="full", budget=None, interval=16)
TEXT = "the quick brown fox jumps over the lazy dog " * 60


def prompts(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (n,), generator=draw).tolist() for n in lengths]


def test_answers_are_those_of_generate(tiny_llama: LlamaForCausalLM) -> None:
    asked = prompts(37, 16, 50)
    expected = [
        tiny_llama.generate(  # type: ignore[misc]
            torch.tensor([p]), max_new_tokens=12, do_sample=False, eos_token_id=[2]
        )[0, len(p) :].tolist()
        for p in asked
    ]
    HybridAttention.attach(tiny_llama)
    slots = Slots.for_model(tiny_llama, build_policy(FULL), num_slots=3, max_length=80)
    for _ in range(2):  # slots are clean for the next batch
        said = answer(tiny_llama, slots, asked, max_tokens=12, eos={2})
        assert said == [[t for t in row if t != 2] for row in expected]


def test_an_end_of_sequence_ends_one_answer_alone(tiny_llama: LlamaForCausalLM) -> None:
    asked = prompts(37, 16, 50)
    HybridAttention.attach(tiny_llama)
    slots = Slots.for_model(tiny_llama, build_policy(FULL), num_slots=3, max_length=80)
    free = answer(tiny_llama, slots, asked, max_tokens=12, eos=())
    stop = free[0][3]
    ended = answer(tiny_llama, slots, asked, max_tokens=12, eos={stop})
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)
    assert len(ended[0]) <= 3


@pytest.mark.parametrize("depths", [1, 4])
def test_a_needle_lies_at_its_depth_and_the_prompt_fits(
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
    """What the tiny model says is taken for the truth, whole, cut and missing."""
    [prompt] = prompts(30)
    HybridAttention.attach(tiny_llama)
    slots = Slots.for_model(tiny_llama, build_policy(FULL), num_slots=1, max_length=80)
    steered = [*byte_tokenizer.encode("7" * 40)]
    [said] = answer(tiny_llama, slots, [steered], max_tokens=24, eos={256})
    numbers = re.findall(r"\d+", byte_tokenizer.decode(said))
    questions = [
        Question(prompt=steered, expected=n, depth=d)
        for d, n in enumerate([*numbers, "987654321987"])
    ]
    questions.append(Question(prompt=prompt, expected="987654321987", depth=99.0))
    result = accuracy(tiny_llama, byte_tokenizer, questions, FULL, batch_size=2)
    assert (result.right, result.asked) == (len(numbers), len(numbers) + 2)
    assert result.by_depth[99.0] == 0
    assert result.kv.dense == slots.dense_nbytes(40 + 23)


def test_kept_positions_are_the_policys(tiny_llama: LlamaForCausalLM) -> None:
    policy = PolicyConfig(name="window", budget=24, sink=4, recent=16, interval=8)
    [ids] = prompts(44)
    kept = kept_positions(tiny_llama, torch.tensor(ids), policy, layer_idx=1, head=1)
    assert kept[3] == [*range(4), *range(12, 32)]
    assert kept[-1] == [*range(4), *range(20, 44)]


def test_texts_that_ship_are_long() -> None:
    for name in ("persuasion", "northanger_abbey", "pydoc"):
        assert len(load_text(name)) > 400_000
    with pytest.raises(FileNotFoundError, match="one of northanger_abbey, persuasion, pydoc"):
        load_text("emma_")
