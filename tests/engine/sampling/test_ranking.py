"""Draws against transformers' own warpers, and one argmax for a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamahome.engine import SamplingParams
from llamahome.engine.sampling.ranking import (
    WINDOW,
    best_numpy,
    best_torch,
    draw,
    top,
    top_numpy,
    top_torch,
)


def _logits(vocab: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def _expected(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return the distribution that transformers samples from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.int64), logits.double())
    return scores.softmax(dim=-1)[0]


def _drawn(logits: Tensor, params: SamplingParams, uniforms: np.ndarray) -> list[int]:
    return [draw(logits, [params], [u])[0] for u in uniforms.tolist()]


@pytest.mark.parametrize("vocab", [64, 5000])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 20.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 20.0, "top_k": 1500},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 20.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 50.0, "min_p": 0.5},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 20.0, "top_k": 3000, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_divide_the_unit_interval_as_transformers_divides_probability(
    vocab: int, params: dict[str, float]
) -> None:
    logits, sampling = _logits(vocab), SamplingParams(**params)
    expected = _expected(logits, sampling)
    order = logits[0].argsort(descending=True, stable=True)
    edges = expected[order].cumsum(0)
    # In the middle of each token's share, so that rounding cannot matter.
    shares = (edges - expected[order] / 2).numpy()
    chosen = np.linspace(0, int((expected > 1e-5).sum()) - 1, 60).astype(int)
    assert _drawn(logits, sampling, shares[chosen]) == order[chosen].tolist()


def test_the_last_rank_kept_is_the_last_drawn() -> None:
    logits = _logits(5000)
    nearly_one = np.nextafter(1.0, 0.0)
    for limits in ({"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.2}, {"top_k": 2000}):
        params = SamplingParams(temperature=1.0, **limits)
        least = int(torch.where(_expected(logits, params) > 0, logits[0], torch.inf).argmin())
        assert draw(logits, [params], [nearly_one]) == [least]


def test_ties_with_the_last_of_top_k_stay() -> None:
    logits = torch.zeros(1, 3000)
    params = SamplingParams(temperature=1.0, top_k=2)
    drawn = {draw(logits, [params], [u])[0] for u in np.linspace(0, 0.999, 40).tolist()}
    assert len(drawn) == 40


def test_ruled_out_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 2 * WINDOW), -torch.inf)
    logits[0, [5, 900, 1500]] = torch.tensor([1.0, 1.0, 2.0])
    uniforms = np.linspace(0, np.nextafter(1.0, 0.0), 50)
    params = SamplingParams(temperature=1.0)
    assert set(_drawn(logits, params, uniforms)) == {5, 900, 1500}


def test_rows_are_drawn_by_their_own_params() -> None:
    logits = _logits(3000).repeat(3, 1)
    hot, cold = SamplingParams(temperature=9.0), SamplingParams(temperature=1e-4)
    alone = draw(logits[:1], [hot], [0.77])
    assert draw(logits, [cold, hot, cold], [0.77] * 3) == [
        int(logits[0].argmax()),
        *alone,
        int(logits[0].argmax()),
    ]


@pytest.mark.parametrize("best", [best_numpy, best_torch])
def test_best_shows_what_is_not_finite(best: Callable[[Tensor], tuple[list, list]]) -> None:
    logits = _logits(100).repeat(4, 1)
    logits[1, 7], logits[2, 8], logits[3] = torch.nan, torch.inf, -torch.inf
    tokens, values = best(logits)
    assert tokens[0] == int(logits[0].argmax())
    assert np.isfinite(values).tolist() == [True, False, False, False]


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_both_ways_to_the_top_agree(count: int) -> None:
    logits = _logits(5000).repeat(2, 1)
    for ours, theirs in zip(top_numpy(logits, count), top_torch(logits, count), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_the_top_is_at_most_everything() -> None:
    values, ids = top(_logits(50), 1000)
    assert values.shape == ids.shape == (1, 50)
