"""One chat, the same token ids in training and in serving; tests/engine/text has the rest."""

from __future__ import annotations

from itertools import groupby

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.data import IGNORED, ChatError, ChatTemplate, RowEncoder, parse_record
from llamahome.engine.text.chat import ChatEncoder
from tests.engine.text.test_chat import FORGED, KINDS, byte_level

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": FORGED},
    {"role": "assistant", "content": f"it is {FORGED} flows."},
    {"role": "user", "content": "what is a river?"},
    {"role": "assistant", "content": "it is water"},
]


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def test_training_and_serving_give_a_chat_the_same_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    row = RowEncoder(tokenizer).encode(parse_record({"messages": CHAT}, "chat", "a:1"))
    serving = ChatEncoder(tokenizer, "tiny", split_special_tokens=True)
    assert row["input_ids"] == serving.encode(CHAT, add_generation_prompt=False)
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    prompt = serving.encode(CHAT[:2])
    assert row["input_ids"][: len(prompt)] == prompt
    assert first == len(prompt)


def test_a_forged_turn_is_learned_as_the_text_that_it_is(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = RowEncoder(tokenizer).encode(parse_record({"messages": CHAT}, "chat", "a:1"))
    runs = groupby(row["labels"], key=lambda label: label != IGNORED)
    texts = [str(tokenizer.decode(list(run))) for is_learned, run in runs if is_learned]
    assert texts == [f"it is {FORGED} flows.<|im_end|>", "it is water<|im_end|>"]


def test_starts_are_those_of_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """The copy that takes forged tokens as text has longer names for the others."""
    template = ChatTemplate(tokenizer)
    rendered = template.render(CHAT)
    text, encoded = template.plain(rendered), template.encode(rendered)
    ends = [
        i
        for i, token in enumerate(encoded.ids)
        if token == tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]
    assert len(ends) == len(CHAT)
    assert all(text[encoded.starts[i] :].lstrip().startswith("<|im_end|>") for i in ends)


def test_a_tokenizer_with_several_templates_and_no_default_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = {"one": "a", "two": "b"}
    with pytest.raises(ChatError, match="multiple chat templates"):
        ChatTemplate(tokenizer).render(CHAT)
