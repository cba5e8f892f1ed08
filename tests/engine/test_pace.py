"""The pace of reading, fed with given times."""

from __future__ import annotations

import random

import pytest

from llamahome.engine.pace import FRESH, LONGEST_PAUSE, Pace

ALONE, CHUNK = 0.01, 0.08  # seconds: a step that decodes, and a chunk on top


def play(
    pace: Pace, steps: int, *, decoding: int = 1, ready: int = 1, alone: float = ALONE
) -> list[int]:
    """Return the chunks of each step, which takes `CHUNK` for each."""
    read = []
    for _ in range(steps):
        chunks = pace.chunks(decoding, ready)
        seconds = (alone if decoding else 0.0) + chunks * CHUNK
        whole = 0 if decoding else chunks
        pace.took(seconds, decoding=decoding, reading=chunks > 0, chunks=whole)
        read.append(chunks)
    return read


@pytest.mark.parametrize("slowdown", [1.2, 2.0, 2.5, 4.0, 20.0])
def test_steps_take_so_many_times_the_time_of_decoding_alone(slowdown: float) -> None:
    read = play(Pace(slowdown), 2000)
    mean = ALONE + CHUNK * sum(read) / len(read)
    most = (ALONE + CHUNK) / ALONE  # a chunk in every step
    assert mean / ALONE == pytest.approx(min(slowdown, most), rel=0.05)
    assert set(read) <= {0, 1}


def test_the_first_chunk_does_not_wait_for_more_than_one_step() -> None:
    assert sum(play(Pace(2.5), 2)) == 1


def test_a_chunk_that_fits_is_read_in_every_step_but_those_that_measure() -> None:
    read = play(Pace(2.5), 10 * FRESH, alone=1.0)
    assert 0 < read.count(0) <= 11


def test_decoding_that_becomes_slower_leaves_more_time_to_prompts() -> None:
    pace = Pace(2.0)
    before = sum(play(pace, 300))
    play(pace, 100, alone=4 * ALONE)
    assert sum(play(pace, 300, alone=4 * ALONE)) > 3 * before


def test_numbers_of_requests_are_measured_apart() -> None:
    pace = Pace(2.0)
    few = sum(play(pace, 300))
    many = sum(play(pace, 300, decoding=8, alone=4 * ALONE))
    assert many > 3 * few
    assert sum(play(pace, 300)) == pytest.approx(few, abs=3)


def test_a_step_that_was_held_up_does_not_stop_reading() -> None:
    pace = Pace(2.5)
    play(pace, 50)
    while pace.chunks(1, 1) == 0:
        pace.took(ALONE, decoding=1, reading=False, chunks=0)
    pace.took(3600.0, decoding=1, reading=True, chunks=0)  # e.g. a process that was stopped
    read = play(pace, 300)
    assert read.index(1) == LONGEST_PAUSE
    assert sum(read[LONGEST_PAUSE:]) > 20


@pytest.mark.parametrize("seed", range(5))
def test_prompts_never_pause_for_longer_than_the_limit(seed: int) -> None:
    drawn, pace, pause = random.Random(seed), Pace(drawn_slowdown := 1.01 + seed), 0
    for _ in range(3000):
        decoding = drawn.choice([1, 1, 2, 5, 9])
        chunks = pace.chunks(decoding, drawn.randint(0, 4))
        seconds = drawn.choice([0.0, 0.001, 0.01, 5.0]) * drawn_slowdown
        pace.took(seconds, decoding=decoding, reading=chunks > 0, chunks=0)
        pause = 0 if chunks else pause + 1
        assert pause <= LONGEST_PAUSE


def test_nobody_waits_for_a_debt_when_nobody_decodes() -> None:
    pace = Pace(1.1)
    play(pace, 20)
    assert play(pace, 20, decoding=0) == [1] * 20
    assert sum(play(pace, 2)) == 1  # and it is not owed later


@pytest.mark.parametrize(("together", "chunks"), [(1.0, 4), (2.4, 4), (2.6, 1), (4.0, 1)])
def test_chunks_are_read_together_where_the_mean_wait_is_shorter(
    together: float, chunks: int
) -> None:
    pace, read = Pace(2.5), []
    for _ in range(FRESH):
        read.append(pace.chunks(0, 4))
        seconds = {1: 1.0, 4: together}[read[-1]]
        pace.took(seconds, decoding=0, reading=True, chunks=read[-1])
    assert read[:2] == [1, 4]  # both are tried
    assert read[2:] == [chunks] * (FRESH - 2)
    assert pace.chunks(1, 4) in (0, chunks)
