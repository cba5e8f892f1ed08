"""Speed of prompt lookup: the engine with `engine.draft_tokens` compared with one without.

    python -m benchmarks.speculation      # the embedded model, some 6 minutes

Both answer the same prompts greedily, in turns, and must give the same tokens. Only decoding is
timed: from the step after the last prefill to the end of the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.draw import table
from benchmarks.record import write_result
from benchmarks.speculation.measure import MOST_REQUESTS, Gain, make_engine, measure
from benchmarks.speculation.prompts import LEAST, SHARE, make_prompts
from llamahome.config import EngineConfig, ModelConfig
from llamahome.models import load_model

POLICIES = ("h2o", "dense")
REQUESTS = (1, 2, 4, MOST_REQUESTS)


def show(gains: Sequence[Gain], console: Console) -> None:
    columns = ("at once", "new", "accepted", "a step", "without", "with", "ratio")
    shown = table(
        "Prompt lookup: decoded tokens/s without and with it", ["policy", "prompt"], columns
    )
    for gain in gains:
        shown.add_row(
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
    console.print(shown)


def verdict(gains: Sequence[Gain]) -> dict[str, float]:
    """Return the speedups under the budget, by kind of prompt and requests at once."""
    return {
        f"speedup_{gain.kind}_b{gain.requests}": round(gain.speedup, 3)
        for gain in gains
        if gain.policy == POLICIES[0]
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of an answer")
    parser.add_argument("--passage", type=int, default=1500, help="tokens of the novel")
    parser.add_argument("--drafts", type=int, default=EngineConfig().draft_tokens)
    parser.add_argument("--output", type=Path, help="file that replaces the dated result")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(os.cpu_count() or 1)
    loaded = load_model(ModelConfig())
    eos = loaded.tokenizer.eos_token_id
    prompts = make_prompts(loaded.tokenizer, options.prompts, options.passage)
    length = max(len(ids) for own in prompts.values() for ids in own) + options.tokens
    gains = []
    for policy in POLICIES:
        plain, drafting = (
            make_engine(loaded.model, eos, policy, length, n) for n in (0, options.drafts)
        )
        cells = [(kind, n) for kind in prompts for n in REQUESTS]
        for kind, requests in track(cells, policy, console=Console(stderr=True)):
            gains.append(
                measure((plain, drafting), kind, prompts, policy, requests, options.tokens)
            )
    show(gains, Console())
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    result = {
        "verdict": verdict(gains),
        "settings": {**settings, "share": SHARE, "least": LEAST},
        "gains": [asdict(gain) for gain in gains],
    }
    write_result("speculation", result, options.output)
    print(json.dumps(result["verdict"]))


if __name__ == "__main__":
    main()
