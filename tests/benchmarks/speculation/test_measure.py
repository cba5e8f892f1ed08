"""Gains of prompt lookup count only where it changes no answer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speculation.measure import distinct, make_engine, measure
from llamahome.engine import Engine
from tests.engine.random_models import random_llama, tokens_of

PROMPTS = {"loops": [tokens_of(9, seed=n) * 4 for n in range(4)]}


def _engine(drafts: int, *, other: bool = False) -> Engine:
    model = random_llama()
    if other:
        torch.nn.init.normal_(model.lm_head.weight)
    return make_engine(model, 2, "dense", 128, drafts)


def test_a_gain_covers_all_prompts_of_a_kind() -> None:
    gain = measure((_engine(0), _engine(7)), "loops", PROMPTS, "dense", 2, 30)
    assert (gain.requests, gain.kind) == (2, "loops")
    assert min(gain.plain, gain.drafting, gain.speedup) > 0
    assert gain.per_step >= 1
    assert 0 <= gain.accepted <= 1


def test_drafts_that_change_an_answer_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="drafts changed an answer"):
        measure((_engine(0), _engine(7, other=True)), "loops", PROMPTS, "dense", 2, 30)


def test_answers_that_repeat_themselves_are_less_distinct() -> None:
    assert distinct(list(range(12))) == 1
    assert distinct([1, 2] * 6) == pytest.approx(0.2)
