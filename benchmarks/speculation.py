"""Would speculative decoding by prompt lookup pay? Measured, without building it in.

    python -m benchmarks.speculation      # the embedded model, some 3 minutes

The engine as it stands answers four kinds of prompts greedily; `speculation_lookup` tells from the
answers how many tokens each step would have given. What a step of 1 + k tokens costs beside one of
a single token is measured through the runner, widths taking turns. Together they predict.

The prediction is a bound from above. Left out are: taking back the mass that rejected drafts put on
keys, without which a slot's state is no function of its prefix; a compaction that waits for the
verdict; sampling at every drafted place; greedy choices that rounding turns, since rows of one
token and longer ones add up in different orders.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.engine import machine
from benchmarks.speculation_answers import LEAST, SHARE, answer, make_prompts, policy_of
from benchmarks.speculation_cost import Cost, OthersShare, fill, step_costs
from benchmarks.speculation_lookup import NGRAMS, Answer, Steps, Widths, draw_steps, simulate
from llamahome.attention import build_policy
from llamahome.config import ModelConfig
from llamahome.engine.native_runner import NativeRunner
from llamahome.models import load_model

RESULTS = Path(__file__).parent / "results"
POLICIES = ("h2o", "dense")
CHUNK = 64
DRAFTS = (3, 5, 8)
BATCHES = (1, 8)
ROW_STEPS = 48  # that stand for all of a kind


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one kind of prompt under one policy, with drafts of one length.

    Attributes:
        distinct: share of an answer's trigrams that are new in it, see `Answer`.
        per_step: tokens that a step gives.
        drafting: share of the steps that check a draft.
        cut: share of the steps whose draft the end of a chunk made shorter.
        whole_cost: of a step in which all rows check whole drafts, in steps of one token, by batch.
        mean_cost: of the steps as they come: rows with drafts, shorter ones and none.
        speedup: predicted, by batch.
    """

    policy: str
    kind: str
    draft: int
    tokens: int
    distinct: float
    steps: int
    per_step: float
    drafting: float
    cut: float
    whole_cost: dict[int, Cost]
    mean_cost: dict[int, float]
    speedup: dict[int, float]


def timed_length(said: Sequence[Answer]) -> int:
    """The chunk's start that lies amidst the answers."""
    middle = statistics.mean(len(own.prompt) + len(own.tokens) / 2 for own in said)
    return max(CHUNK, int(middle) // CHUNK * CHUNK)


def measure(
    model: PreTrainedModel, said: dict[str, list[Answer]], policy: str, rounds: int, threads: int
) -> list[Prediction]:
    """All kinds and drafts under one policy."""
    lengths = {kind: timed_length(own) for kind, own in said.items()}
    longest = max(lengths.values())
    ids = max((own.prompt + own.tokens for group in said.values() for own in group), key=len)
    runner = NativeRunner(
        model,
        build_policy(policy_of(policy, longest)),
        num_slots=max(BATCHES),
        max_length=longest + CHUNK,
        threads=threads,
    )
    found = []
    for kind, own in said.items():
        fill(runner, ids, lengths[kind], policy_of(policy, lengths[kind]))
        runs = {k: [simulate(a, draft=k, interval=CHUNK) for a in own] for k in DRAFTS}
        drawn = {(k, b): draw_steps(runs[k], b, ROW_STEPS // b) for k in DRAFTS for b in BATCHES}
        whole = [(1 + k,) * b for k in DRAFTS for b in BATCHES]
        steps = [*whole, *(widths for group in drawn.values() for widths in group)]
        cost = step_costs(runner, steps, ids, rounds)
        for k in DRAFTS:
            batches = {b: drawn[k, b] for b in BATCHES}
            found.append(predict(policy, kind, k, own, runs[k], batches, cost))
    return found


def predict(
    policy: str,
    kind: str,
    draft: int,
    said: Sequence[Answer],
    runs: Sequence[Steps],
    drawn: Mapping[int, Sequence[Widths]],
    cost: Mapping[Widths, Cost],
) -> Prediction:
    """Tokens of a step over its mean cost, the latter from the steps drawn for each batch."""
    steps = sum(len(run.widths) for run in runs)
    tokens = sum(run.tokens for run in runs)
    mean_cost = {
        b: statistics.mean(cost[widths].median for widths in own) for b, own in drawn.items()
    }
    return Prediction(
        policy=policy,
        kind=kind,
        draft=draft,
        tokens=tokens,
        distinct=statistics.mean(own.distinct for own in said),
        steps=steps,
        per_step=tokens / steps,
        drafting=sum(width > 1 for run in runs for width in run.widths) / steps,
        cut=sum(run.cut for run in runs) / steps,
        whole_cost={b: cost[(1 + draft,) * b] for b in drawn},
        mean_cost=mean_cost,
        speedup={b: tokens / steps / mean for b, mean in mean_cost.items()},
    )


def verdict(found: Sequence[Prediction]) -> dict[str, float]:
    """Under the budget, with drafts of the one length that does best over all kinds and batches."""
    own = [prediction for prediction in found if prediction.policy == POLICIES[0]]

    def mean(draft: int) -> float:
        return statistics.mean(x for p in own if p.draft == draft for x in p.speedup.values())

    draft = max(DRAFTS, key=mean)
    chosen = {
        prediction.kind: prediction.speedup for prediction in own if prediction.draft == draft
    }
    return {
        "draft": draft,
        "speedup_chat_b1": chosen["chat"][1],
        "speedup_copy_b1": chosen["copy"][1],
        "speedup_chat_b8": chosen["chat"][8],
        "speedup_mean": mean(draft),
    }


def show(found: Sequence[Prediction], console: Console) -> None:
    title = "Prompt lookup: tokens and cost of a step, what is gained at best"
    table = Table(title=title, padding=0)
    table.add_column("policy, prompt", no_wrap=True)
    columns = ("k", "new", "tokens", "drafts", "cut")
    batched = [f"{what} b{batch}" for what in ("cost", "gain") for batch in BATCHES]
    for column in (*columns, *batched):
        table.add_column(column, justify="right", no_wrap=True)
    for own in found:
        table.add_row(
            f"{own.policy} {own.kind}",
            str(own.draft),
            f"{own.distinct:.2f}",
            f"{own.per_step:.2f}",
            f"{own.drafting:.0%}",
            f"{own.cut:.0%}",
            *(f"{own.whole_cost[batch].median:.2f}" for batch in BATCHES),
            *(f"{own.speedup[batch]:.2f}" for batch in BATCHES),
        )
    console.print(table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--passage", type=int, default=1500, help="tokens of the novel")
    parser.add_argument("--rounds", type=int, default=15, help="of every step, two at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="in place of the dated result")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    loaded = load_model(ModelConfig())
    eos = loaded.tokenizer.eos_token_id
    prompts = make_prompts(loaded.tokenizer, options.prompts, options.passage)
    found: list[Prediction] = []
    others: dict[str, float] = {}
    for policy in POLICIES:
        said = answer(loaded.model, eos, prompts, policy, options.tokens, options.threads)
        share = OthersShare()
        found += measure(loaded.model, said, policy, options.rounds, options.threads)
        others[policy] = share.value
    show(found, Console())
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    result = {
        "verdict": verdict(found),
        "date": date,
        "settings": {**settings, "share": SHARE, "least": LEAST, "ngrams": NGRAMS, "chunk": CHUNK},
        "machine": machine(),
        "others_share_of_cpu": others,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "predictions": [asdict(own) for own in found],
    }
    file = options.output or RESULTS / f"speculation-{date}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"verdict": result["verdict"], "others_share_of_cpu": others}))


if __name__ == "__main__":
    main()
