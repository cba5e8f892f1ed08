"""Answers of an engine with drafts and of one without, in turns; both must be the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from benchmarks.speculation.prompts import Prompts, policy_of
from llamahome.attention import build_policy
from llamahome.config import EngineConfig
from llamahome.engine import Engine, SamplingParams

MOST_REQUESTS = 8


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Answers to requests that ran at once.

    Attributes:
        tokens: tokens of each answer.
        timed: how many of them the timed decoding gave, in `seconds`.
    """

    tokens: list[list[int]]
    timed: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.timed / self.seconds


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Gain from drafts on one kind of prompt under one policy.

    Attributes:
        requests: requests at once.
        distinct: share of an answer's trigrams that are new in it; low for one that repeats itself.
        plain, drafting: tokens per second without and with drafts, medians of the rounds.
        speedup: median of the rounds' ratios.
        per_step: tokens per step of a request.
        accepted: share of the draft tokens that were accepted.
    """

    policy: str
    kind: str
    requests: int
    distinct: float
    plain: float
    drafting: float
    speedup: float
    per_step: float
    accepted: float


def distinct(tokens: Sequence[int]) -> float:
    """Return the share of trigrams that occur here for the first time."""
    grams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(grams)) / max(1, len(grams))


def make_engine(model: PreTrainedModel, eos: int, policy: str, length: int, drafts: int) -> Engine:
    config = EngineConfig(
        slots=MOST_REQUESTS,
        max_length=length,
        runner="native",
        weights="int8",
        snapshot_bytes=0,
        draft_tokens=drafts,
    )
    return Engine(model, build_policy(policy_of(policy, length)), config, eos_token_ids={eos})


def answer(engine: Engine, prompts: Sequence[list[int]], policy: str, tokens: int) -> Answered:
    """Answer prompts at once; time the steps after the last prefill."""
    said: dict[str, list[int]] = {}
    for number, ids in enumerate(prompts):
        budget = policy_of(policy, len(ids) + tokens).budget
        engine.submit(str(number), ids, SamplingParams(max_tokens=tokens, kv_budget=budget))
        said[str(number)] = []
    begun: set[str] = set()
    while len(begun) < len(said):
        begun |= _step(engine, said)
    before, given = replace(engine.stats()), sum(map(len, said.values()))
    started = time.perf_counter()
    while engine.has_work:
        _step(engine, said)
    seconds = time.perf_counter() - started
    after = engine.stats()
    return Answered(
        tokens=list(said.values()),
        timed=sum(map(len, said.values())) - given,
        seconds=seconds,
        drafted=after.drafted_tokens - before.drafted_tokens,
        accepted=after.accepted_tokens - before.accepted_tokens,
    )


def _step(engine: Engine, said: dict[str, list[int]]) -> set[str]:
    """Step once, and return the requests that got something."""
    deltas = engine.step()
    for delta in deltas:
        if delta.error is not None:
            raise RuntimeError(f"request {delta.request_id}: {delta.error}")
        if delta.token is not None:
            said[delta.request_id].append(delta.token)
    return {delta.request_id for delta in deltas}


def measure(
    engines: tuple[Engine, Engine],
    kind: str,
    prompts: Prompts,
    policy: str,
    requests: int,
    tokens: int,
) -> Gain:
    """Compare both engines on all prompts of a kind, `requests` at once, in turn first.

    Raises:
        RuntimeError: when drafts change an answer.
    """
    own = prompts[kind]
    plain: list[Answered] = []
    drafting: list[Answered] = []
    for number, first in enumerate(range(0, len(own), requests)):
        group = own[first : first + requests]
        pair = [(engines[0], plain), (engines[1], drafting)]
        for engine, found in pair if number % 2 else pair[::-1]:
            found.append(answer(engine, group, policy, tokens))
        if plain[-1].tokens != drafting[-1].tokens:
            raise RuntimeError(f"{policy}, {kind}: drafts changed an answer")
    timed = sum(one.timed for one in drafting)
    accepted = sum(one.accepted for one in drafting)
    return Gain(
        policy=policy,
        kind=kind,
        requests=requests,
        distinct=statistics.mean(distinct(ids) for one in plain for ids in one.tokens),
        plain=statistics.median(one.rate for one in plain),
        drafting=statistics.median(one.rate for one in drafting),
        speedup=statistics.median(
            one.rate / other.rate
            for one, other in zip(drafting, plain, strict=True)
            if other.timed  # not when every answer has one token at most
        ),
        per_step=timed / (timed - accepted),
        accepted=accepted / max(1, sum(one.drafted for one in drafting)),
    )
