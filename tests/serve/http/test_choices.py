from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llamahome.requests import Token, Usage
from serve.http.choices import Answers, merged
from serve.http.errors import ApiError
from serve.wire import Delta


def usage(prompt: int, completion: int) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        kept_tokens=1,
        evicted_tokens=2,
        peak_tokens=1,
        cached_tokens=0,
        kv_bytes=10,
        kv_bytes_dense=20,
    )


class Stream:
    """Gives its texts, each after a pause; then fails, if it is to."""

    def __init__(self, *texts: str, pause: float = 0.0, error: Exception | None = None) -> None:
        self.texts, self.pause, self.error = texts, pause, error
        self.closed = False

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        try:
            for text in self.texts:
                await asyncio.sleep(self.pause)
                yield Delta(text=text, token_count=1)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def test_streams_come_as_they_grow_and_keep_their_order():
    slow, quick = Stream("a", "b", pause=0.02), Stream("1", "2", "3")
    got = [(i, delta.text) async for i, delta in merged([slow.deltas(), quick.deltas()])]
    assert got == [(1, "1"), (1, "2"), (1, "3"), (0, "a"), (0, "b")]


async def test_an_error_ends_all():
    endless = Stream(*"abcdef", pause=5)
    broken = Stream("x", error=ApiError(500, "it died"))
    answers = merged([endless.deltas(), broken.deltas()])
    assert (await anext(answers))[1].text == "x"
    with pytest.raises(ApiError, match="it died"):
        await anext(answers)
    assert endless.closed


async def test_leaving_early_closes_every_stream():
    streams = [Stream("a", "b", pause=0.001), Stream("c", pause=5)]
    answers = merged([stream.deltas() for stream in streams])
    await anext(answers)
    await answers.aclose()
    assert [stream.closed for stream in streams] == [True, True]


def test_answers_are_put_together_by_choice():
    answers = Answers(2, 2)
    token = Token(5, b"a", 0, -0.5)
    answers.add(1, Delta(text="x", token_count=1, finish_reason="stop", usage=usage(5, 1)))
    answers.add(0, Delta(text="a", token_count=1, tokens=(token,)))
    answers.add(0, Delta(text="b", token_count=1, finish_reason="length", usage=usage(5, 2)))
    first, second = answers.whole()
    assert (first.text, first.tokens, first.finish_reason) == ("ab", (token,), "length")
    assert (second.text, second.finish_reason) == ("x", "stop")


def test_a_prompt_counts_once_however_many_answers_it_has():
    answers = Answers(4, 2)
    for index, prompt in enumerate((5, 5, 7, 7)):
        answers.note(index, Delta(text="", token_count=0, usage=usage(prompt, 3)))
    total = answers.usage()
    assert total is not None
    assert (total.prompt_tokens, total.completion_tokens) == (12, 12)
    assert (total.kv_bytes, total.evicted_tokens) == (40, 8)


def test_nothing_that_ended_took_nothing():
    assert Answers(1, 1).usage() is None
