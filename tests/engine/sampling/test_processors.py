"""Penalties against transformers and OpenAI's formula; bias; no end before min_tokens."""

from __future__ import annotations

from collections import Counter

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llamahome.engine import SamplingParams
from llamahome.engine.sampling.processors import LogitsProcessor, build_processors

PROMPT = [3, 9, 9, 12]
ANSWER = [5, 9, 5, 7, 5]
VOCAB = 20


def _row() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))


def _processors(params: SamplingParams, stop: tuple[int, ...] = ()) -> list[LogitsProcessor]:
    return build_processors(
        params,
        PROMPT,
        stop_token_ids=stop,
        vocab_size=VOCAB,
        device=torch.device("cpu"),
    )


def _after(processors: list[LogitsProcessor], answer: list[int]) -> torch.Tensor:
    for processor in processors:
        for token in answer:
            processor.advance(token)
    row = _row()
    for processor in processors:
        processor.apply(row)
    return row


def test_a_plain_request_has_none() -> None:
    assert _processors(SamplingParams(temperature=1.0, top_p=0.9, min_tokens=3)) == []


def test_repetition_is_that_of_transformers() -> None:
    row = _after(_processors(SamplingParams(repetition_penalty=1.3)), ANSWER)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)
    expected = theirs(torch.tensor([PROMPT + ANSWER]), _row()[None])
    torch.testing.assert_close(row[None], expected)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=-0.25)
    counts = Counter(ANSWER)
    expected = [
        logit - 0.5 * (counts[token] > 0) + 0.25 * counts[token]
        for token, logit in enumerate(_row().tolist())
    ]
    assert torch.allclose(_after(_processors(params), ANSWER), torch.tensor(expected))
    assert torch.equal(_after(_processors(params), []), _row())


def test_bias_is_added() -> None:
    row = _after(_processors(SamplingParams(logit_bias={4: 2.5, 6: -100.0})), ANSWER)
    expected = _row()
    expected[4] += 2.5
    expected[6] -= 100
    assert torch.equal(row, expected)


def test_no_end_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2)
    for answer, ruled_out in (([], True), ([5], True), ([5, 6], False)):
        row = _after(_processors(params, stop=(2, 11)), answer)
        assert torch.isinf(row[[2, 11]]).tolist() == [ruled_out] * 2
        assert torch.isfinite(row[[0, 1, 3]]).all()
