"""Frames of the memory lens against what the slots themselves hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from llamahome.engine import Engine, SamplingParams, TokenDelta
from llamahome.engine import lens as engine_lens
from llamahome.lens import LensFrame, joined
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import random_llama, tokens_of
from tests.policies import CASES, policy_case

PROMPT = tokens_of(19)
PARAMS = SamplingParams(max_tokens=14, temperature=1.0, seed=5, lens=True)

Held = dict[tuple[int, int], list[int]]


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a frame due with every token."""
    monkeypatch.setattr(engine_lens, "PERIOD_S", 0.0)
    monkeypatch.setattr(engine_lens, "SHARE", math.inf)


def _engine(case: str, runner: str, **options: Any) -> Engine:
    options = {"snapshot_bytes": 0, "slots": 1, **options}
    return build_engine(random_llama(), policy_case(case), runner=runner, **options)


def _runner_for(case: str) -> str:
    return "torch" if "rolling" in case else "native"


def _steps(engine: Engine) -> Iterator[TokenDelta]:
    while engine.has_work:
        yield from (delta for delta in engine.step() if delta.token is not None)


def _of_slot(engine: Engine, slot: int = 0) -> Held:
    """Return the tokens that a slot's snapshot says each head of each layer holds."""
    slots = engine._runner.slots
    tensors = slots.save(slot).tensors
    return {
        (plane.shape.layer_idx, head): sorted(own.tolist())
        for index, plane in enumerate(slots.planes)
        for head, own in zip(plane.heads, tensors[f"{index}.positions"], strict=True)
    }


def _of_frame(frame: LensFrame) -> Held:
    places = [(layer, head) for layer in range(frame.layers) for head in range(frame.heads)]
    return {place: frame.held(*place) for place in places}


def _check_every_frame(engine: Engine) -> list[LensFrame]:
    frames = []
    for delta in _steps(engine):
        assert delta.lens is not None
        assert _of_frame(delta.lens) == _of_slot(engine)
        frames.append(delta.lens)
    return frames


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    ("case", "runner"), [*((case, "torch") for case in CASES),
                         *((case, "native") for case in CASES if "rolling" not in case)]
)  # fmt: skip
def test_under_every_policy_a_frame_shows_what_the_slot_holds(case: str, runner: str) -> None:
    engine = _engine(case, runner)
    engine.submit("a", PROMPT, PARAMS)
    frames = _check_every_frame(engine)
    assert [frame.length for frame in frames] == list(range(19, 33))
    assert any(len(frames[-1].held(*place)) < 32 for place in _of_frame(frames[-1]))


@pytest.mark.usefixtures("every_step")
def test_without_eviction_every_token_is_held(runner: str) -> None:
    engine = _engine("h2o", runner)
    engine.submit("a", PROMPT[:8], SamplingParams(max_tokens=4, kv_policy="full", lens=True))
    for frame in _check_every_frame(engine):
        assert set(map(tuple, _of_frame(frame).values())) == {tuple(range(frame.length))}


@pytest.mark.usefixtures("every_step")
def test_a_window_holds_its_first_and_newest_tokens(runner: str) -> None:
    """With a budget of 12 and chunks of 4: of 32 tokens, 2 sinks and the last 10."""
    engine = _engine("window", runner)
    engine.submit("a", PROMPT, PARAMS)
    *_, last = _check_every_frame(engine)
    assert last.length == 32
    assert last.held(0, 0) == [0, 1, *range(22, 32)]
    assert last.token_bytes == engine._runner.slots.dense_nbytes(1)


@pytest.mark.usefixtures("every_step")
def test_the_frames_tokens_are_the_requests(runner: str) -> None:
    engine = _engine("h2o", runner)
    engine.submit("a", PROMPT, PARAMS)
    deltas = list(_steps(engine))
    whole = joined([delta.lens for delta in deltas if delta.lens is not None])
    assert whole is not None
    assert (whole.start, list(whole.ids)) == (0, PROMPT + tokens_in(deltas))


@pytest.mark.usefixtures("every_step")
def test_a_smaller_budget_holds_less(runner: str) -> None:
    engine = _engine("h2o", runner, slots=2)
    engine.submit("served", PROMPT, PARAMS)
    small = SamplingParams(max_tokens=14, kv_budget=8, kv_policy="window", lens=True)
    engine.submit("small", PROMPT, small)
    last = {name: deltas[-1].lens for name, deltas in drain(engine).items()}
    assert last["served"] is not None
    assert last["small"] is not None
    assert (len(last["served"].held(0, 0)), len(last["small"].held(0, 0))) == (12, 8)
    assert last["small"].held(0, 0) == _of_slot(engine, 1)[0, 0]


@pytest.mark.usefixtures("every_step")
def test_after_a_prefix_hit_frames_show_the_restored_entries(runner: str) -> None:
    engine = _engine("h2o", runner, snapshot_bytes=2**24)
    for name in ("first", "second"):
        engine.submit(name, PROMPT, PARAMS)
        frames = _check_every_frame(engine)
    assert engine.stats().prefix_hits == 1
    assert (frames[0].start, len(frames[0].ids)) == (0, 20)


@pytest.mark.usefixtures("every_step")
def test_rejected_drafts_are_never_shown() -> None:
    engine = _engine("h2o", "native", draft_tokens=4)
    bias = {7: 100.0, 8: 99.0}
    params = SamplingParams(
        max_tokens=40, temperature=1.0, seed=3, logit_bias=bias, frequency_penalty=0.3, lens=True
    )
    engine.submit("a", PROMPT, params)
    ids: list[int] = []
    while engine.has_work:
        deltas = engine.step()
        frames = [delta.lens for delta in deltas if delta.lens is not None]
        assert len(frames) <= 1
        for frame in frames:
            assert _of_frame(frame) == _of_slot(engine)
            ids += frame.ids
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert len(ids) == 59


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("case", CASES)
def test_an_answer_that_moves_to_another_engine_ends_with_the_same_frame(case: str) -> None:
    runner = _runner_for(case)
    whole, other = _engine(case, runner), _engine(case, runner)
    whole.submit("a", PROMPT, PARAMS)
    deltas = drain(whole)["a"]
    other.submit("a", PROMPT, PARAMS, answered=tokens_in(deltas)[:7])
    frames = [delta.lens for delta in drain(other)["a"] if delta.lens is not None]
    assert deltas[-1].lens is not None
    assert _of_frame(frames[-1]) == _of_frame(deltas[-1].lens)
    assert list(frames[0].ids) == PROMPT + tokens_in(deltas)[:8]


def test_frames_are_rare_but_the_first_and_the_last_come(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_lens, "PERIOD_S", math.inf)
    engine = _engine("h2o", runner)
    engine.submit("a", PROMPT, PARAMS)
    deltas = drain(engine)["a"]
    assert [i for i, delta in enumerate(deltas) if delta.lens is not None] == [0, 13]


def test_frames_of_many_requests_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_lens, "PERIOD_S", 0.0)
    monkeypatch.setattr(engine_lens, "SHARE", 1e-12)
    engine = _engine("h2o", "torch", slots=2)
    for name in "ab":
        engine.submit(name, PROMPT, PARAMS)
    for deltas in drain(engine).values():
        assert [i for i, delta in enumerate(deltas) if delta.lens is not None] == [0, 13]


def test_without_the_lens_nothing_is_read(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engine_lens, "kept_bits")
    engine = _engine("h2o", runner)
    engine.submit("a", PROMPT, SamplingParams(max_tokens=26))
    assert all(delta.lens is None for delta in drain(engine)["a"])
    assert engine.frame("a") is None
