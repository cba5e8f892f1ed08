"""Needles in prompts of a given length."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.config import ConfigError
from llamahome.evaluation import needles
from llamahome.evaluation.tasks.words import KINDS
from tests.evaluation.cases import TEXT


@pytest.mark.parametrize("depths", [1, 4])
def test_a_needle_is_at_its_depth_and_the_prompt_fits(
    byte_tokenizer: PreTrainedTokenizerFast, depths: int
) -> None:
    asked = list(needles(byte_tokenizer, TEXT, length=600, depths=depths, samples=4, seed=1))
    assert len(asked) == 4 * depths
    places = []
    for question in asked:
        assert 560 < len(question.prompt) <= 600
        text = byte_tokenizer.decode(question.prompt)
        assert text.count(question.expected) == 1
        places.append(text.index(question.expected))
    assert places[:depths] == sorted(places[:depths])
    assert Counter((q.depth, q.kind) for q in asked) == Counter(
        (place / max(1, depths - 1), kind) for place in range(depths) for kind in KINDS
    )
    again = list(needles(byte_tokenizer, TEXT, length=600, depths=depths, samples=4, seed=1))
    assert again == asked


def test_the_question_is_at_the_end(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for question in needles(byte_tokenizer, TEXT, length=600, depths=2, samples=2, seed=0):
        text = str(byte_tokenizer.decode(question.prompt))
        *_, asked = text.split("\n\n")
        assert asked.endswith("?<eos><|assistant|>")
        assert question.expected not in asked


def test_a_prompt_too_short_for_its_question_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ConfigError, match=r"eval\.contexts: a needle's prompt of 50 tokens needs"):
        list(needles(byte_tokenizer, TEXT, length=50, depths=1, samples=1, seed=0))
