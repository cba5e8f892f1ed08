"""Streaming text: whole characters, nothing of a stop text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llamahome.engine.text.text_stream import TextError, TextStream

TEXTS = [
    "plain words",
    "héllo wörld",
    "漢字かな交じり文",
    "🎉 party 👩‍👩‍👧 family 🇫🇷",
    "a\n\n  b\t",
]


def _pieces(
    tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...] = ()
) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer.backend_tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, stream
    pieces.append(stream.flush())
    return pieces, stream


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_splits_a_character(byte_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    pieces, _ = _pieces(byte_tokenizer, text)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_bytes_that_are_no_text_come_out_as_decode_has_them(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    generator = random.Random(0)
    for _ in range(50):
        tokens = [generator.randrange(256) for _ in range(40)]
        stream = TextStream(byte_tokenizer.backend_tokenizer)
        text = "".join(stream.push(token) for token in tokens) + stream.flush()
        assert text == byte_tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("aab", ("ab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("über alles", ("ü",), ""),
        ("said 漢字 here", ("字",), "said 漢"),
        ("ends with END", ("END",), "ends with "),
    ],
)
def test_it_stops_before_a_stop_text(
    byte_tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...], expected: str
) -> None:
    pieces, stream = _pieces(byte_tokenizer, text, stop)
    assert stream.stopped
    assert "".join(pieces) == expected


def test_a_stop_text_that_never_completes_is_given_back(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    pieces, stream = _pieces(byte_tokenizer, "about to ST", ("STOP",))
    assert not stream.stopped
    assert "".join(pieces) == "about to ST"
    assert "S" not in "".join(pieces[:-1])


def test_a_stop_text_before_min_tokens_is_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(byte_tokenizer.backend_tokenizer, ("ab",), min_tokens=4)
    text = ""
    for token in byte_tokenizer.encode("abcabc"):
        text += stream.push(token)
        if stream.stopped:
            break
    assert (text, stream.stopped) == ("abc", True)


@pytest.mark.parametrize(
    ("text", "stop", "starts"),
    [
        ("abc", (), [0, 1, 2]),
        ("aéb", (), [0, 1, 1, 2]),  # é is two tokens
        ("ab STOP", ("STOP",), [0, 1, 2]),
        ("ab STO", ("STOP",), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_tokens_are_listed_with_their_text(
    byte_tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...], starts: list[int]
) -> None:
    stream = TextStream(byte_tokenizer.backend_tokenizer, stop)
    returned, starts_seen = "", []
    for token in byte_tokenizer.encode(text):
        returned += stream.push(token)
        starts_seen += stream.take_starts()
        assert all(start < len(returned) for start in starts_seen)
    stream.flush()
    assert starts_seen + stream.take_starts() == starts


@pytest.fixture(scope="module")
def llama2_like() -> Tokenizer:
    """SentencePiece as Llama 2 has it: a space before words, bytes for what has no token."""
    words = ["\u2581the", "\u2581b", "a", "b", "\u2581"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<0x00>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def streamed(tokenizer: Tokenizer, answer: list[int], before: Sequence[int] = ()) -> str:
    stream = TextStream(tokenizer, before=before)
    return "".join(stream.push(token) for token in answer) + stream.flush()


def test_wrong_bytes_beside_a_character_are_those_of_decode(llama2_like: Tokenizer) -> None:
    character = list("中".encode())
    for answer in ([*character, 0xFF, 256], [*character, *character[:2]], [0xFF, *character, 258]):
        assert streamed(llama2_like, answer) == llama2_like.decode(answer)
    drawn = random.Random(0)
    for _ in range(300):
        answer = [drawn.choice([drawn.randrange(261), *character, 256]) for _ in range(12)]
        assert streamed(llama2_like, answer) == llama2_like.decode(answer)


def test_an_answer_keeps_the_space_that_it_begins_with(llama2_like: Tokenizer) -> None:
    before, answer = [258, 256], [257, 256]
    whole = llama2_like.decode([*before, *answer])
    assert whole == "a the b the"
    assert streamed(llama2_like, answer, before) == " b the"
    assert streamed(llama2_like, answer) == "b the"
    character = list("中".encode())
    assert streamed(llama2_like, answer, [258, *character]) == " b the"
    assert streamed(llama2_like, character[2:], character[:2]) == llama2_like.decode(character[2:])


def test_a_tokenizer_that_fails_is_named() -> None:
    with pytest.raises(TextError, match="token 5 could not be decoded"):
        TextStream("no tokenizer").push(5)
