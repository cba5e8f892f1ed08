"""Right answers, and turns that are balanced."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.evaluation import Question
from llamahome.evaluation.tasks.question import chat_prompt, draws


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("12345", "It is 12345.", True),
        ("12345", "12345", True),
        ("12345", "It is 123456, or 912345.", False),
        ("12345", "It is 12,345.", False),
        ("kettle", "The Kettle!", True),
        ("kettle", "KETTLE", True),
        ("kettle", "in the 'kettle'", True),
        ("kettle", "Two kettles.", False),
        ("kettle", "a teakettle", False),
        ("Ivan", "ivan's lighthouse", True),
        ("Ivan", "Ivanhoe", False),
        ("kettle", "", False),
    ],
)
def test_a_right_answer_holds_the_word_whole(expected: str, said: str, right: bool) -> None:
    question = Question(prompt=[], expected=expected, depth=0.0, kind="words")
    assert question.is_answered_by(said) is right


def test_turns_are_balanced_in_depths_and_samples() -> None:
    drawn = [(turn % 4, depth) for turn, depth, _ in draws("seed", 6, 4)]
    assert Counter(drawn) == Counter((turn, place / 5) for turn in range(4) for place in range(6))
    assert sorted(turn % 4 for turn, _, _ in draws("seed", 4, 1)) == [0, 1, 2, 3]
    assert [depth for _, depth, _ in draws("seed", 1, 2)] == [0, 0]


def test_each_question_has_random_numbers_of_its_own() -> None:
    first, again, other = (
        [draw.random() for _, _, draw in draws(seed, 3, 2)] for seed in ("a", "a", "b")
    )
    assert first == again
    assert len({*first, *other}) == 12


def test_a_tokenizer_without_a_template_has_a_plain_prompt(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    asked = "Who?"
    chat = byte_tokenizer.decode(chat_prompt(byte_tokenizer, asked))
    assert chat == "<|user|>Who?<eos><|assistant|>"
    template, byte_tokenizer.chat_template = byte_tokenizer.chat_template, None
    try:
        assert byte_tokenizer.decode(chat_prompt(byte_tokenizer, asked)) == "Who?\nAnswer:"
    finally:
        byte_tokenizer.chat_template = template
