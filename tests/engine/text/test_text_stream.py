"""Streaming text: whole characters, nothing of a stop text."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

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


def streamed(
    tokenizer: Tokenizer, answer: Sequence[int], before: Sequence[int] = (), *, cut: bool = False
) -> str:
    stream = TextStream(tokenizer, before=before)
    return "".join(stream.push(token) for token in answer) + stream.flush(cut=cut)


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


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """Byte-level BPE with tokens that end, or are, a part of a character."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["a\N{CJK UNIFIED IDEOGRAPH-4E2D}", "a\N{CJK UNIFIED IDEOGRAPH-4E00}"] * 9
    trainer = trainers.BpeTrainer(vocab_size=258, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def test_an_answer_cut_inside_a_character_ends_before_it(
    llama2_like: Tokenizer, merging: Tokenizer, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    for text in (*TEXTS, "a\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-4E2D}"):
        data = text.encode()
        single = byte_tokenizer.encode(text)
        for length in range(len(data) + 1):
            expected = data[:length].decode(errors="ignore")
            assert streamed(llama2_like, list(data[:length]), cut=True) == expected
            backend = byte_tokenizer.backend_tokenizer
            assert streamed(backend, single[:length], cut=True) == expected
        ids = merging.encode(text).ids
        for length in range(len(ids) + 1):
            expected = merging.decode(ids[:length]).removesuffix("\ufffd")
            assert streamed(merging, ids[:length], cut=True) == expected
    parts = list("\N{CJK UNIFIED IDEOGRAPH-4E2D}".encode())
    assert streamed(llama2_like, [*parts, *parts[:2]], cut=True) == bytes(parts).decode()
    first = merging.encode("a\N{CJK UNIFIED IDEOGRAPH-4E2D}").ids
    assert len(first) == 2  # "a" and the first byte or two are one token
    assert streamed(merging, first[:1], cut=True) == "a"


def test_only_a_character_that_is_begun_is_left_out(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    backend = byte_tokenizer.backend_tokenizer
    letters = {letter: index for letter, index in backend.get_vocab().items() if len(letter) == 1}
    ids = {byte: letters[letter] for byte, letter in bytes_to_unicode().items()}
    drawn = random.Random(0)
    for _ in range(300):
        data = bytes(drawn.choice([drawn.randrange(256), 0xE4, 0xB8, 0xF0, 65]) for _ in range(9))
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        answer = [ids[byte] for byte in data]
        assert streamed(backend, answer, cut=True) == decoder.decode(data)
        assert streamed(backend, answer) == backend.decode(answer)
    assert streamed(backend, [ids[65], ids[0xFF]], cut=True) == "A\ufffd"
    assert streamed(backend, byte_tokenizer.encode("A\ufffd"), cut=True) == "A\ufffd"


def test_a_tokenizer_that_fails_is_named() -> None:
    with pytest.raises(TextError, match="token 5 could not be decoded"):
        TextStream("no tokenizer").push(5)
