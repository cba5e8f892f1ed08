from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

import pytest

from llamahome.requests import CallFormat, Token
from serve.http.calls import ObjectScan, whole_calls, with_calls
from serve.wire import CallDelta, Delta

HERMES = CallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    following='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
)
LLAMA = CallFormat(opening='{"name": "', middle='", "parameters": ', following=None, closing="}")
ARGUMENTS = ('{"a": "}\\"{", "b": {"c": [1, {}]}}', "{}")
TWO = (
    f'{HERMES.opening}f{HERMES.middle}{ARGUMENTS[0]}{HERMES.following}'
    f'g{HERMES.middle}{ARGUMENTS[1]}{HERMES.closing}'
)  # fmt: skip


async def answered(
    pieces: Sequence[str], form: CallFormat | None = HERMES, reason: str = "stop"
) -> list[Delta]:
    async def stream() -> AsyncGenerator[Delta, None]:
        at = 0
        for i, piece in enumerate(pieces):
            token = Token(id=0, data=piece.encode(), offset=at, logprob=0.0)
            at += len(piece)
            yield Delta(
                text=piece,
                token_count=1,
                tokens=(token,),
                call_format=form if i == 0 else None,
                finish_reason=reason if i == len(pieces) - 1 else None,
            )

    return [delta async for delta in with_calls(stream())]


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def calls_of(deltas: Sequence[Delta]) -> list[tuple[str | None, str]]:
    parts = [call for delta in deltas for call in delta.calls]
    return [(call.name, call.arguments) for call in whole_calls(parts)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_calls_are_found_however_the_text_is_cut(size):
    whole = f"Let me see <tool.\n\n{TWO}"
    deltas = await answered([whole[i : i + size] for i in range(0, len(whole), size)])
    assert text_of(deltas) == "Let me see <tool."
    assert calls_of(deltas) == [("f", ARGUMENTS[0]), ("g", ARGUMENTS[1])]
    assert deltas[-1].finish_reason == "tool_calls"
    assert (deltas[-1].text, deltas[-1].calls) == ("", ())
    assert sum(delta.token_count for delta in deltas) == -(-len(whole) // size)
    heads = [call for delta in deltas for call in delta.calls if call.id is not None]
    assert [(head.index, head.name, head.arguments) for head in heads] == [
        (0, "f", ""),
        (1, "g", ""),
    ]
    assert len({head.id for head in heads}) == 2


async def test_arguments_come_as_they_grow():
    deltas = await answered(list(TWO))
    parts = [call.arguments for delta in deltas for call in delta.calls if call.index == 0]
    assert parts == ["", *ARGUMENTS[0]]


@pytest.mark.parametrize("text", ["Hello <tool_", "  <", " \n", "", "a < b </tool_call>"])
async def test_text_without_a_call_is_whole(text):
    deltas = await answered(list(text) or [""])
    assert text_of(deltas) == text
    assert deltas[-1].finish_reason == "stop"
    tokens = [token.data.decode() for delta in deltas for token in delta.tokens]
    assert "".join(tokens) == text


async def test_the_tokens_of_calls_are_none_of_the_text():
    deltas = await answered(list(f"Yes.\n{TWO}"))
    tokens = [token.data.decode() for delta in deltas for token in delta.tokens]
    assert "".join(tokens) == "Yes."


@pytest.mark.parametrize("cut", range(1, len(TWO)))
async def test_a_call_that_is_cut_shows_no_marker(cut):
    for reason in ("length", "stop"):
        deltas = await answered([TWO[:cut]], reason=reason)
        ended = reason == "stop" and TWO[:cut].endswith(HERMES.closing)
        assert deltas[-1].finish_reason == ("tool_calls" if ended else reason)
        if cut >= len("<tool_call>"):  # before that it may be any text
            assert text_of(deltas) == ""
        for (_, arguments), whole in zip(calls_of(deltas), ARGUMENTS, strict=False):
            assert whole.startswith(arguments)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        ('It is {"name": "f"}', 'It is {"name": "f"}', []),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_where_calls_are_json_the_first_character_tells(text, content, calls, size):
    deltas = await answered([text[i : i + size] for i in range(0, len(text), size)], LLAMA)
    assert (text_of(deltas), calls_of(deltas)) == (content, calls)
    assert deltas[-1].finish_reason == ("tool_calls" if calls else "stop")


async def test_without_a_format_nothing_changes():
    deltas = await answered([TWO, "end"], None)
    assert [delta.text for delta in deltas] == [TWO, "end"]


@pytest.mark.parametrize("value", [{}, {"a": '{"\\'}, {"a": [{"b": "}"}]}, {"é": "]["}])
def test_the_end_of_an_object_is_where_json_ends_it(value):
    text = json.dumps(value)
    for size in (1, 5, 100):
        scan, used = ObjectScan(), 0
        for i in range(0, len(text + " tail"), size):
            if not scan.ended:
                used += scan.push((text + " tail")[i : i + size])
        assert (scan.ended, used) == (True, len(text))


def test_parts_of_calls_become_whole_ones():
    parts = [
        CallDelta(index=0, arguments="", id="x", name="f"),
        CallDelta(index=0, arguments="{"),
        CallDelta(index=0, arguments="}"),
        CallDelta(index=1, arguments="", id="y", name="g"),
    ]
    assert whole_calls(parts) == [
        CallDelta(index=0, arguments="{}", id="x", name="f"),
        CallDelta(index=1, arguments="", id="y", name="g"),
    ]
