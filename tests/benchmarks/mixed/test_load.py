"""The mix and its figures, without an engine."""

from __future__ import annotations

import pytest

from benchmarks.engine.load import Timeline
from benchmarks.mixed.load import Arrival, Form, figures, mix, waiting_s

IDS = list(range(50_000))


def test_the_mix_has_the_shares_of_the_time_that_are_asked_for() -> None:
    form = Form(groups=200, long_tokens=100, long_share=0.5, short_share=0.1)
    arrived = mix(form, IDS, long_s=2.0, short_s=0.5)
    longs = [own for own in arrived if own.long]
    shorts = [own for own in arrived if not own.long]
    assert len(longs) == 600
    assert 600 * 2.0 / longs[-1].at == pytest.approx(0.5, rel=0.15)
    assert len(shorts) * 0.5 / shorts[-1].at == pytest.approx(0.1, rel=0.15)
    assert [own.at for own in arrived] == sorted(own.at for own in arrived)


def test_time_counts_once_however_many_wait_for_their_first_token() -> None:
    lines = [
        Timeline(arrived=0.0, tokens=[3.0, 9.0]),
        Timeline(arrived=1.0, tokens=[2.0]),
        Timeline(arrived=2.0, tokens=[4.0]),
        Timeline(arrived=10.0, tokens=[11.5]),
    ]
    assert waiting_s(lines) == 5.5


def test_figures_keep_long_and_short_apart() -> None:
    requests = [
        Arrival(at=0.0, prompt=[1] * 90, answer=2, long=True),
        Arrival(at=1.0, prompt=[1] * 10, answer=3, long=False),
    ]
    lines = [
        Timeline(arrived=0.0, tokens=[4.0, 5.0]),
        Timeline(arrived=1.0, tokens=[2.0, 2.5, 3.0]),
    ]
    own = figures(requests, lines)
    assert (own.long_ttft, own.short_ttft, own.short_tpot) == (4.0, 1.0, 0.5)
    assert own.prefill == 100 / 4.0
