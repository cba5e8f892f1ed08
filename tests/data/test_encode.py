from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamahome.data import IGNORED, DataError, Record, Row, encode

USER = {"role": "user", "content": "Who are you?"}
ASSISTANT = {"role": "assistant", "content": "A model."}
SYSTEM = {"role": "system", "content": "Be brief."}
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATS = {
    "one turn": [USER, ASSISTANT],
    "two turns": [
        USER,
        ASSISTANT,
        USER,
        {"role": "assistant", "content": "As I said.\n\nA model."},
    ],
    "system": [SYSTEM, USER, ASSISTANT],
    "ends with a question": [USER, ASSISTANT, USER],
    "the same answer twice": [USER, ASSISTANT, USER, ASSISTANT],
    "answer repeats the question": [USER, {"role": "assistant", "content": "Who are you? Me."}],
    "spaces and line breaks": [USER, {"role": "assistant", "content": "one\n\n  two \n"}],
    "other scripts": [USER, {"role": "assistant", "content": "Ich grüße: 你好, नमस्ते 👋🏽!"}],
    "a special token inside": [USER, {"role": "assistant", "content": "It is <|endoftext|> here."}],
}


def chat(*messages: Any) -> Record:
    return {"messages": list(messages)}


def learned(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text of each run of tokens that has labels."""
    runs = groupby(row["labels"], key=lambda label: label != IGNORED)
    return [str(tokenizer.decode(list(run))) for is_learned, run in runs if is_learned]


def ids_of(messages: list[Any], tokenizer: PreTrainedTokenizerBase, generate: bool) -> list[int]:
    tokens: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=generate)
    return list(tokens["input_ids"])


def byte_tokenizer_with(template: str, *special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"Hello": 256, "ĠHello": 257}
    vocab = {c: i for i, c in enumerate(alphabet)} | words
    # As in Llama 3, words in the vocabulary are tokens, even if no merge produces them.
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        additional_special_tokens=list(special),
        name_or_path="tiny",
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def llama_3() -> PreTrainedTokenizerFast:
    special = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_tokenizer_with(LLAMA_3, *special)
    bos = "<|begin_of_text|>"
    # Llama 3's tokenizer adds one to any text, and its template has already written one.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS.keys())
def test_smollm2_learns_each_answer_and_its_end_token_and_nothing_else(
    messages: list[Any], smollm2: PreTrainedTokenizerBase
) -> None:
    row = encode(chat(*messages), smollm2)
    answers = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    assert learned(row, smollm2) == answers


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS.keys())
def test_ids_are_those_of_the_rendered_chat(
    messages: list[Any], smollm2: PreTrainedTokenizerBase
) -> None:
    row = encode(chat(*messages), smollm2)
    assert row["input_ids"] == ids_of(messages, smollm2, generate=False)
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    assert all(label in (IGNORED, token) for token, label in pairs)


def test_the_model_learns_from_the_prompt_it_will_be_given(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    row = encode(chat(SYSTEM, USER, ASSISTANT), smollm2)
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    assert row["input_ids"][:first] == ids_of([SYSTEM, USER], smollm2, generate=True)


def test_token_that_begins_in_the_prompt_is_not_learned(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    row = encode(chat(USER, {"role": "assistant", "content": "\n\nA model."}), smollm2)
    assert learned(row, smollm2) == ["\nA model.<|im_end|>"]


def test_llama_3_template_learns_trimmed_answers_and_the_end_of_turn(
    llama_3: PreTrainedTokenizerFast,
) -> None:
    answers = [{"role": "assistant", "content": text} for text in (" Hello \n", "Hello Hello é")]
    row = encode(chat(SYSTEM, USER, answers[0], USER, answers[1]), llama_3)
    assert learned(row, llama_3) == ["Hello<|eot_id|>", "Hello Hello é<|eot_id|>"]
    assert row["input_ids"].count(llama_3.bos_token_id) == 1


def test_turns_that_no_special_token_ends_are_learned_whole() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = byte_tokenizer_with(template)
    row = encode(chat(USER, ASSISTANT, USER, ASSISTANT), tokenizer)
    assert learned(row, tokenizer) == ["A model.\n", "A model.\n"]


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    template = (
        "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}"
        "{% else %}(left out){% endif %}<end>{% endfor %}"
    )
    tokenizer = byte_tokenizer_with(template, "<end>")
    with pytest.raises(DataError, match=r"'tiny' renders a turn differently .*\(messages\[1\]"):
        encode(chat(USER, ASSISTANT, USER, ASSISTANT), tokenizer)
    assert learned(encode(chat(USER, ASSISTANT), tokenizer), tokenizer) == ["A model.<end>"]


def test_chat_that_the_template_refuses_is_named() -> None:
    template = "{% for m in messages %}{{ raise_exception('no system turn here') }}{% endfor %}"
    with pytest.raises(DataError, match=r"refuses the chat that begins 'Be brief.': no system"):
        encode(chat(SYSTEM, USER, ASSISTANT), byte_tokenizer_with(template))


def test_tokenizer_without_a_template_is_refused_with_the_cure() -> None:
    tokenizer = byte_tokenizer_with("")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"'tiny' has no chat template; use .* chat_template.jinja"):
        encode(chat(USER, ASSISTANT), tokenizer)


def test_tokenizer_without_offsets_is_refused_with_the_cure() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = LLAMA_3
    with pytest.raises(DataError, match=r"no character offsets; convert it to a tokenizer.json"):
        encode(chat(USER, ASSISTANT), tokenizer)
