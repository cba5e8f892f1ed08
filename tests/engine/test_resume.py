"""An answer that one engine begins and another one ends, as one engine would have given it."""

from __future__ import annotations

import pytest
import torch

from llamahome.attention.policies import BUILDERS
from llamahome.engine import Engine, SamplingParams, TokenDelta
from llamahome.requests import RequestError
from tests.engine.engines import build_engine, drain, tokens_in
from tests.engine.random_models import random_llama, tokens_of
from tests.policies import CASES, policy_case

PROMPT = tokens_of(11)
PARAMS = SamplingParams(
    max_tokens=26, temperature=1.0, seed=5, repetition_penalty=1.2, min_tokens=20
)


def _engine(case: str, runner: str, **options: object) -> Engine:
    return build_engine(
        random_llama(), policy_case(case), runner=runner, snapshot_bytes=0, slots=1, **options
    )


def _answer(engine: Engine, params: SamplingParams, answered: list[int]) -> list[TokenDelta]:
    engine.submit("a", PROMPT, params, answered=answered)
    return drain(engine)["a"]


def _entries(engine: Engine) -> dict[str, torch.Tensor]:
    return engine._runner.slots.save(0).tensors


@pytest.mark.parametrize("case", CASES)
def test_under_every_policy_the_same_entries_stay(case: str) -> None:
    """Positions that a slot keeps, its keys, values and mass are those of the whole run."""
    runner = "torch" if "rolling" in case else "native"
    whole, other = _engine(case, runner), _engine(case, runner)
    deltas = _answer(whole, PARAMS, [])
    tokens, kept = tokens_in(deltas), _entries(whole)
    for done in (1, 13) if runner == "torch" else (1, 6, 13, 25):
        rest = _answer(other, PARAMS, tokens[:done])
        assert tokens_in(rest) == tokens[done:]
        assert rest[-1].usage == deltas[-1].usage
        for name, tensor in _entries(other).items():
            if runner == "native":
                assert torch.equal(tensor, kept[name]), name
            else:
                torch.testing.assert_close(tensor, kept[name])


def test_every_policy_is_among_the_cases() -> None:
    assert {policy_case(case).name for case in CASES} == set(BUILDERS) - {"full"}


def test_at_every_token_the_answer_goes_on_the_same() -> None:
    whole, other = _engine("h2o_decay", "native"), _engine("h2o_decay", "native")
    deltas = _answer(whole, PARAMS, [])
    tokens = tokens_in(deltas)
    assert len(tokens) == 26
    for done in range(1, len(tokens)):
        rest = _answer(other, PARAMS, tokens[:done])
        assert tokens_in(rest) == tokens[done:]
        assert rest[-1].usage == deltas[-1].usage


def test_a_replay_shares_steps_with_other_requests(runner: str) -> None:
    """Replayed rows, drafted rows and prompts in one step; nobody's tokens change."""
    repeating = SamplingParams(max_tokens=40, logit_bias={7: 100.0, 8: 99.0})
    whole = build_engine(random_llama(), policy_case("h2o"), runner=runner, slots=3)
    for name, params in (("a", PARAMS), ("b", repeating)):
        whole.submit(name, PROMPT, params)
    expected = {name: tokens_in(deltas) for name, deltas in drain(whole).items()}
    mixed = build_engine(random_llama(), policy_case("h2o"), runner=runner, slots=3)
    mixed.submit("b", PROMPT, repeating)
    for _ in range(8):
        first = [delta for delta in mixed.step() if delta.request_id == "b"]
    assert first, "b decodes by now"
    mixed.submit("a", PROMPT, PARAMS, answered=expected["a"][:21])
    mixed.submit("c", PROMPT, SamplingParams(max_tokens=3))
    rest = drain(mixed)
    assert tokens_in(rest["a"]) == expected["a"][21:]
    assert expected["b"][-len(tokens_in(rest["b"])) :] == tokens_in(rest["b"])


def test_a_snapshot_of_the_prompt_helps_and_counts_no_answer_as_prompt(runner: str) -> None:
    engine = build_engine(random_llama(), policy_case("h2o"), runner=runner, slots=1)
    tokens = tokens_in(_answer(engine, PARAMS, []))
    rest = _answer(engine, PARAMS, tokens[:9])
    assert tokens_in(rest) == tokens[9:]
    assert rest[-1].usage is not None
    assert 0 <= rest[-1].usage.cached_tokens <= len(PROMPT)
    assert rest[-1].usage.completion_tokens == len(tokens)


def test_tokens_that_the_model_does_not_know_are_refused(runner: str) -> None:
    with pytest.raises(RequestError, match="answered=9999"):
        _engine("h2o", runner).submit("a", PROMPT, PARAMS, answered=[9999])
