"""Texts that a grammar lets pass, byte by byte."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llamahome.engine import RequestError
from llamahome.engine.sampling.grammar import MAX_CHARACTERS, GrammarMask, Vocabulary
from llamahome.requests import Grammar

EOS = 256
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def vocabulary(byte_tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(byte_tokenizer, 260, {EOS})


def _allowed(mask: GrammarMask) -> set[int]:
    row = torch.zeros(260)
    mask.apply(row)
    return set(torch.isfinite(row).nonzero()[:, 0].tolist())


def _accepts(tokenizer: PreTrainedTokenizerFast, mask: GrammarMask, text: str) -> bool:
    """Return whether the mask lets `text` pass and end."""
    for token in tokenizer.encode(text):
        if token not in _allowed(mask):
            return False
        mask.advance(token)
    return EOS in _allowed(mask)


@pytest.mark.parametrize(
    ("grammar", "text", "passes"),
    [
        (Grammar("regex", r"[0-9]{3}-\d+"), "123-4", True),
        (Grammar("regex", r"[0-9]{3}-\d+"), "12-4", False),
        (Grammar("regex", r"[0-9]{3}-\d+"), "123-", False),
        (Grammar("choice", '["yes", "no/maybe", "a.b", "漢字\\n"]'), "no/maybe", True),
        (Grammar("choice", '["yes", "no/maybe", "a.b", "漢字\\n"]'), "漢字\n", True),
        (Grammar("choice", '["yes", "no/maybe", "a.b"]'), "axb", False),
        (Grammar("choice", '["yes", "no"]'), "ye", False),
        (Grammar("json", json.dumps(SCHEMA)), '{"name": "Ada", "age": 36}', True),
        (Grammar("json", json.dumps(SCHEMA)), '{"name":"Ada","age":36}', True),
        (Grammar("json", json.dumps(SCHEMA)), '{"name": "Ada", "age": "36"}', False),
        (Grammar("json", json.dumps(SCHEMA)), '{"name": "Ada"}', False),
        (Grammar("json", json.dumps(SCHEMA)), '{"name":' + 40 * " " + '"Ada","age":1}', False),
        (Grammar("json", '{"type": "object"}'), '{"any": [1, {"thing": null}]}', True),
        (Grammar("json", '{"type": "object"}'), '["no object"]', False),
    ],
)
def test_it_accepts_what_the_grammar_says(
    vocabulary: Vocabulary,
    byte_tokenizer: PreTrainedTokenizerFast,
    grammar: Grammar,
    text: str,
    passes: bool,
) -> None:
    assert _accepts(byte_tokenizer, vocabulary.mask(grammar), text) is passes


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("regex", "[0-9]{3"), "unclosed"),
        (Grammar("json", '{"type": "objekt"}'), "objekt"),
        (Grammar("json", "{"), "no valid json"),
        (Grammar("choice", "yes, no"), "no valid choice"),
        (Grammar("choice", '["yes", 5]'), "list of texts"),
        (Grammar("choice", "[]"), "list of texts"),
    ],
)
def test_a_wrong_grammar_is_refused_with_the_reason(
    vocabulary: Vocabulary, grammar: Grammar, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        vocabulary.mask(grammar)
    assert refused.value.field == "grammar"
    assert "<state>" not in str(refused.value)


def test_masks_of_one_grammar_go_their_own_ways(
    vocabulary: Vocabulary, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    grammar = Grammar("choice", '["ab", "cd"]')
    first, second = vocabulary.mask(grammar), vocabulary.mask(grammar)
    a, b, c = (byte_tokenizer.encode(letter)[0] for letter in "abc")
    first.advance(a)
    assert (_allowed(first), _allowed(second)) == ({b}, {a, c})
    assert not first.finished
    first.advance(b)
    assert first.finished


def test_tokens_as_bytes(vocabulary: Vocabulary, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = byte_tokenizer.encode("é")
    assert b"".join(vocabulary.token_bytes(token) for token in tokens) == "é".encode()
    assert vocabulary.token_bytes(EOS) == b"<eos>"


def _chain(links: int, link: str = '{"anyOf":[%s]}') -> str:
    """Return a schema whose definitions refer to each other in a row."""
    row = [f'"{i:x}":{link % _REFERENCE % (i + 1)}' for i in range(links)]
    row.append(f'"{links:x}":{{"type":"string"}}')
    return f'{{"$ref":"#/$defs/0","$defs":{{{",".join(row)}}}}}'


_REFERENCE = '{"$ref":"#/$defs/%x"}'


def test_a_deep_schema_does_not_exhaust_the_stack(vocabulary):
    # On a thread's usual 8 MiB, 1,200 links ended the process.
    text = _chain(1500)
    assert len(text) < MAX_CHARACTERS
    assert _allowed(vocabulary.mask(Grammar("json", text)))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json", _chain(20_000)),
        Grammar("regex", "a" * (MAX_CHARACTERS + 1)),
        Grammar("choice", json.dumps([f"choice {i}" for i in range(20_000)])),
    ],
    ids=["json", "regex", "choice"],
)
def test_a_grammar_that_is_too_long_is_refused(vocabulary, grammar):
    with pytest.raises(RequestError, match="at most 65536 are allowed") as caught:
        vocabulary.mask(grammar)
    assert caught.value.field == "grammar"


def test_a_grammar_of_too_many_states_is_refused(vocabulary):
    text = _chain(1550, '{"items":%s}')
    assert len(text) < MAX_CHARACTERS
    with pytest.raises(RequestError) as caught:
        vocabulary.mask(Grammar("json", text))
    assert caught.value.reason.startswith("no valid json: grammar size")
