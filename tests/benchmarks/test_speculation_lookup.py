"""Prompt lookup on known answers, counted by hand."""

from __future__ import annotations

import random

import pytest

from benchmarks.speculation_lookup import Answer, Steps, draw_steps, lookup, simulate

FAR = 1000  # a chunk that never ends


def test_a_draft_follows_where_three_tokens_first_came_before() -> None:
    assert lookup([1, 2, 3, 4, 5, 1, 2, 3, 6, 1, 2, 3], 2) == [4, 5]


def test_two_tokens_will_do_where_three_never_came() -> None:
    assert lookup([7, 2, 3, 4, 5, 9, 2, 3], 3) == [4, 5, 9]
    assert lookup([7, 3, 4, 9, 3], 3) == []


def test_the_last_tokens_are_no_match_of_their_own() -> None:
    assert lookup([1, 2, 3], 4) == []
    assert lookup([5, 5, 5], 4) == [5]


def test_a_copy_takes_a_step_for_each_whole_draft() -> None:
    text = list(range(10, 31))
    # 10 is the prompt's own; 11 finds nothing; 10, 11 match, and drafts of 4 are right, plus one.
    steps = simulate(Answer(prompt=[*text, 1], tokens=text), draft=4, interval=FAR)
    assert steps == Steps(widths=[1, 5, 5, 5, 4], accepted=[0, 4, 4, 4, 3], cut=0)
    assert steps.tokens == len(text) - 1


def test_a_wrong_draft_gives_one_token() -> None:
    answer = Answer(prompt=[1, 2, 3, 4], tokens=[9, 1, 2, 5, 6])
    assert simulate(answer, draft=3, interval=FAR) == Steps(
        widths=[1, 1, 2, 1], accepted=[0, 0, 0, 0], cut=0
    )


def test_no_step_crosses_a_chunk() -> None:
    text = list(range(10, 31))
    answer = Answer(prompt=[*text, 1], tokens=text)
    steps = simulate(answer, draft=4, interval=8)
    computed = len(answer.prompt)
    for width, accepted in zip(steps.widths, steps.accepted, strict=True):
        assert computed % 8 + width <= 8
        computed += accepted + 1
    assert steps.widths == [1, 1, 5, 3, 5, 3, 2]
    assert steps.cut == 3
    assert steps.tokens == len(text) - 1


@pytest.mark.parametrize("draft", [1, 3, 8])
def test_every_token_is_given_once(draft: int) -> None:
    drawn = random.Random(draft)
    tokens = [drawn.randrange(3) for _ in range(200)]
    steps = simulate(Answer(prompt=tokens[:50], tokens=tokens[50:]), draft=draft, interval=64)
    assert steps.tokens == 149
    assert max(steps.widths) <= 1 + draft
    assert all(a < w for a, w in zip(steps.accepted, steps.widths, strict=True))


def test_an_answer_of_one_token_takes_no_step() -> None:
    assert simulate(Answer(prompt=[1, 2], tokens=[3]), draft=3, interval=8).widths == []


def test_drawn_steps_have_the_widths_of_the_answers() -> None:
    runs = [
        Steps(widths=[1] * 30, accepted=[0] * 30, cut=0),
        Steps(widths=[4] * 10, accepted=[3] * 10, cut=0),
    ]
    drawn = draw_steps(runs, 8, 6)
    assert {len(widths) for widths in drawn} == {8}
    rows = [width for widths in drawn for width in widths]
    assert (rows.count(1), rows.count(4)) == (36, 12)
    assert len(set(drawn)) > 1


def test_answers_that_go_in_circles_are_less_distinct() -> None:
    assert Answer(prompt=[], tokens=list(range(12))).distinct == 1
    assert Answer(prompt=[], tokens=[1, 2] * 6).distinct == pytest.approx(0.2)
