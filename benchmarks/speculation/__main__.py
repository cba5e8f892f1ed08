"""What prompt lookup is worth: the engine with `engine.draft_tokens` beside the engine without.

    python -m benchmarks.speculation      # the embedded model, some 6 minutes

Both answer the same prompts greedily, in turns, and must say the same. Only decoding is timed:
from the step after the last prompt is read to the end of the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.machine import machine
from benchmarks.speculation.prompts import LEAST, SHARE, Prompts, make_prompts, policy_of
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.models import load_model

RESULTS = Path(__file__).parents[1] / "results"
POLICIES = ("h2o", "dense")
REQUESTS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Some requests, answered at once.

    Attributes:
        tokens: of each answer.
        timed: tokens of those that decoding gave, and the seconds it took.
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
    """Of one kind of prompt under one policy.

    Attributes:
        requests: at once.
        distinct: share of an answer's trigrams that are new in it: low where it goes in circles.
        plain, drafting: tokens a second, medians of the rounds.
        speedup: median of the rounds' ratios.
        per_step: tokens that a step gives a request.
        accepted: share of the guessed tokens that were right.
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
    grams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(grams)) / max(1, len(grams))


def make_engine(model: PreTrainedModel, eos: int, policy: str, length: int, drafts: int) -> Engine:
    config = EngineConfig(
        slots=max(REQUESTS),
        max_length=length,
        runner="native",
        weights="int8",
        snapshot_bytes=0,
        draft_tokens=drafts,
    )
    return Engine(model, build_policy(policy_of(policy, length)), config, eos_token_ids={eos})


def answer(engine: Engine, prompts: Sequence[list[int]], policy: str, tokens: int) -> Answered:
    said: dict[str, list[int]] = {}
    for number, ids in enumerate(prompts):
        budget = policy_of(policy, len(ids) + tokens).budget
        engine.submit(str(number), ids, SamplingParams(max_tokens=tokens, kv_budget=budget))
        said[str(number)] = []
    begun: set[str] = set()
    while len(begun) < len(said):  # prompts are being read
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
    """Which requests it gave something."""
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
    """Rounds over all prompts of a kind, `requests` at once; the two engines take turns to begin.

    Raises:
        RuntimeError: when guesses change an answer.
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
            raise RuntimeError(f"{policy}, {kind}: guesses changed an answer")
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
            if other.timed  # else the answer is one token, or none
        ),
        per_step=timed / (timed - accepted),
        accepted=accepted / max(1, sum(one.drafted for one in drafting)),
    )


def show(gains: Sequence[Gain], console: Console) -> None:
    table = Table(title="Prompt lookup: decoded tokens a second, without and with it")
    for column in ("policy", "prompt"):
        table.add_column(column)
    for column in ("at once", "new", "right", "a step", "without", "with", "ratio"):
        table.add_column(column, justify="right")
    for gain in gains:
        table.add_row(
            gain.policy,
            gain.kind,
            str(gain.requests),
            f"{gain.distinct:.2f}",
            f"{gain.accepted:.0%}",
            f"{gain.per_step:.2f}",
            f"{gain.plain:,.0f}",
            f"{gain.drafting:,.0f}",
            f"{gain.speedup:.2f}",
        )
    console.print(table)


def verdict(gains: Sequence[Gain]) -> dict[str, float]:
    """Under the budget, by kind and requests at once."""
    return {
        f"speedup_{gain.kind}_b{gain.requests}": round(gain.speedup, 3)
        for gain in gains
        if gain.policy == POLICIES[0]
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--passage", type=int, default=1500, help="tokens of the novel")
    parser.add_argument("--drafts", type=int, default=EngineConfig().draft_tokens)
    parser.add_argument("--output", type=Path, help="in place of the dated result")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(os.cpu_count() or 1)
    loaded = load_model(ModelConfig())
    eos = loaded.tokenizer.eos_token_id
    prompts = make_prompts(loaded.tokenizer, options.prompts, options.passage)
    length = max(len(ids) for own in prompts.values() for ids in own) + options.tokens
    gains = []
    cells = [(policy, kind, n) for policy in POLICIES for kind in prompts for n in REQUESTS]
    engines: dict[str, tuple[Engine, Engine]] = {}
    for policy, kind, requests in track(cells, "answering", console=Console(stderr=True)):
        if policy not in engines:
            plain, drafting = (
                make_engine(loaded.model, eos, policy, length, n) for n in (0, options.drafts)
            )
            engines = {policy: (plain, drafting)}
        gains.append(measure(engines[policy], kind, prompts, policy, requests, options.tokens))
    show(gains, Console())
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    result = {
        "verdict": verdict(gains),
        "date": date,
        "settings": {**settings, "share": SHARE, "least": LEAST},
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gains": [asdict(gain) for gain in gains],
    }
    file = options.output or RESULTS / f"speculation-{date}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["verdict"]))


if __name__ == "__main__":
    main()
