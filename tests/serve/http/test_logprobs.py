from __future__ import annotations

from llamahome.requests import Token, TopToken
from serve.http.logprobs import chat_logprobs, completion_logprobs

TOKENS = (
    Token(5, b"Hi", 0, None),
    Token(6, "é".encode()[:1], 2, -0.25, (TopToken(b"o", -0.1), TopToken(b"a", float("-inf")))),
    Token(7, "é".encode()[1:], 2, float("-inf"), (TopToken(b"o", -0.1),)),
)


def test_a_chat_lists_tokens_with_bytes_and_alternatives():
    first, second = chat_logprobs(TOKENS[1:])
    assert (first.token, first.bytes, first.logprob) == ("\N{REPLACEMENT CHARACTER}", [195], -0.25)
    assert [(top.token, top.bytes, top.logprob) for top in first.top_logprobs] == [
        ("o", [111], -0.1),
        ("a", [97], -9999.0),
    ]
    assert second.logprob == -9999.0


def test_a_completion_lists_them_in_columns_with_the_chosen_one_among_the_top():
    columns = completion_logprobs(TOKENS[:2])
    assert columns is not None
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert columns.tokens == ["Hi", unknown]
    assert columns.text_offset == [0, 2]
    assert columns.token_logprobs == [None, -0.25]
    assert columns.top_logprobs == [None, {"o": -0.1, "a": -9999.0, unknown: -0.25}]
    assert completion_logprobs(()) is None
