from __future__ import annotations

import pytest

from serve.security.limits import Buckets, Taken


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_holds_a_minute_and_fills_evenly(clock):
    buckets = Buckets(clock)
    assert [buckets.take("k", "requests", 6, 1).remaining for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    refused = buckets.take("k", "requests", 6, 1)
    assert (refused.ok, refused.wait_s, refused.reset_s) == (False, 10.0, 60.0)
    clock.now = 9.9
    assert not buckets.take("k", "requests", 6, 1).ok
    clock.now = 10.0
    assert buckets.take("k", "requests", 6, 1).ok
    clock.now = 1000.0
    assert buckets.take("k", "requests", 6, 1).remaining == 5  # never more than a minute's


def test_what_was_not_used_comes_back_and_what_was_beyond_is_owed(clock):
    buckets = Buckets(clock)
    buckets.take("k", "tokens", 600, 500)
    buckets.give("k", "tokens", 600, 400)
    assert buckets.take("k", "tokens", 600, 500).remaining == 0
    buckets.give("k", "tokens", 600, -300)
    refused = buckets.take("k", "tokens", 600, 10)
    assert not refused.ok
    assert refused.wait_s == 31.0
    buckets.give("k", "tokens", 600, 10_000)
    assert buckets.take("k", "tokens", 600, 0).remaining == 600


def test_keys_and_kinds_have_buckets_of_their_own(clock):
    buckets = Buckets(clock)
    assert buckets.take("a", "requests", 1, 1).ok
    assert not buckets.take("a", "requests", 1, 1).ok
    assert buckets.take("b", "requests", 1, 1).ok
    assert buckets.take("a", "tokens", 1, 1).ok


@pytest.mark.parametrize(
    ("seconds", "spelled"), [(0.0, "0ms"), (0.02, "20ms"), (1.0, "1s"), (89.5, "1m30s")]
)
def test_durations_are_spelled_as_openai_does(seconds, spelled):
    taken = Taken(ok=True, limit=9, remaining=3, reset_s=seconds)
    assert taken.rates("tokens") == {
        "limit-tokens": "9",
        "remaining-tokens": "3",
        "reset-tokens": spelled,
    }
