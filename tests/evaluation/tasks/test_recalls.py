"""Lists of keys in prompts of a given length."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast

from llamahome.evaluation import recalls


def test_a_list_names_each_key_once(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for question in recalls(byte_tokenizer, length=700, depths=3, samples=2, seed=1):
        assert 660 < len(question.prompt) <= 700
        text = byte_tokenizer.decode(question.prompt)
        listed = dict(re.findall(r"([a-z]+ [a-z]+): (\d+)", text))
        [asked] = re.findall(r"beside '([a-z]+ [a-z]+)'", text)
        assert listed[asked] == question.expected
