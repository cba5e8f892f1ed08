"""A batch's tokens in one call: each row by its own rules, and no row's trouble another's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llamahome.engine import SamplingParams
from llamahome.engine.sampling.grammar import GrammarMask, Vocabulary
from llamahome.engine.sampling.sampler import SamplingState, choose
from llamahome.requests import Grammar

VOCAB = 300


def _state(grammar: GrammarMask | None = None, **params: object) -> SamplingState:
    return SamplingState(
        SamplingParams(**params),
        [1, 2],
        eos_token_ids=frozenset({256}),
        vocab_size=VOCAB,
        device=torch.device("cpu"),
        grammar=grammar,
    )


def _logits(rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, VOCAB, generator=generator) * 2


def test_plain_requests_get_the_likeliest_token() -> None:
    logits = _logits(5)
    choices = choose(logits, [_state() for _ in range(5)])
    assert [choice.token for choice in choices] == logits.argmax(dim=1).tolist()
    assert all(c.logprob is None and c.top_logprobs == () for c in choices)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_fails_alone(bad: float) -> None:
    logits = _logits(4)
    logits[1, 200] = bad
    logits[2, 100] = bad
    states = [_state(), _state(), _state(temperature=1.0, logprobs=2), _state(logprobs=1)]
    choices = choose(logits, states)
    assert [choice.error is None for choice in choices] == [True, False, False, True]
    assert "not finite" in str(choices[1].error)
    assert choices[3].logprob is not None


def test_a_row_with_nothing_left_fails_alone(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary(byte_tokenizer, VOCAB, {256})
    done = vocabulary.mask(Grammar("choice", '["a"]'))
    done.advance(byte_tokenizer.encode("a")[0])  # only the end may follow
    states = [_state(), _state(done, min_tokens=3), _state(temperature=1.0, seed=1)]
    choices = choose(_logits(3), states)
    assert [choice.error is None for choice in choices] == [True, False, True]
    assert "no token is left" in str(choices[1].error)


def test_a_grammar_that_fails_midway_fails_alone(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    broken = Vocabulary(byte_tokenizer, VOCAB, {256}).mask(Grammar("regex", "[0-9]+"))
    broken.advance(byte_tokenizer.encode("x")[0])
    choices = choose(_logits(2), [_state(broken), _state()])
    assert "the grammar failed" in str(choices[0].error)
    assert choices[1].error is None


def test_company_does_not_change_what_a_seed_gives() -> None:
    logits = _logits(3)
    alone, together = _state(temperature=1.5, seed=7), _state(temperature=1.5, seed=7)
    other, greedy = _state(temperature=1.0), _state(repetition_penalty=1.2)
    first = [choose(logits[1:2], [alone])[0].token for _ in range(20)]
    second = [choose(logits, [other, together, greedy])[1].token for _ in range(20)]
    assert first == second
    assert len(set(first)) > 5


def test_negative_seeds_are_seeds_of_their_own() -> None:
    draws = [_state(temperature=1.0, seed=seed).uniform() for seed in (5, -5, 5)]
    assert draws[0] == draws[2] != draws[1]


def test_logprobs_are_the_models_own() -> None:
    logits = _logits(2)
    kept = logits.clone()
    bias = {int(logits[0].argmin()): 100.0}
    states = [
        _state(temperature=0.5, seed=0, logit_bias=bias, logprobs=3),
        _state(temperature=0.0, logprobs=0),
    ]
    biased, greedy = choose(logits, states)
    expected = logits.double().log_softmax(dim=1)
    assert biased.token in bias
    assert biased.logprob == pytest.approx(float(expected[0].min()), abs=1e-5)
    values, ids = expected[0].topk(3)
    assert [token for token, _ in biased.top_logprobs] == ids.tolist()
    assert [lp for _, lp in biased.top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)
    assert greedy.logprob == pytest.approx(float(expected[1].max()), abs=1e-5)
    assert greedy.top_logprobs == ()
    assert torch.equal(logits, kept)


def test_penalties_see_what_was_taken_in() -> None:
    logits = _logits()
    state = _state(presence_penalty=2.0, frequency_penalty=2.0)
    tokens = []
    for _ in range(6):
        choice = choose(logits, [state])[0]
        token = choice.token
        assert token is not None
        state.advance(choice)
        tokens.append(token)
    assert len(set(tokens)) > 1
    assert tokens[0] == int(logits.argmax())


def test_tiny_temperatures_are_greedy() -> None:
    assert choose(_logits(), [_state(temperature=1e-300)])[0].token == int(_logits().argmax())
