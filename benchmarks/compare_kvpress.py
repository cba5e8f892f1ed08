"""Our policies compared with kvpress's presses: perplexity after a compressed prompt.

    python -m benchmarks.compare_kvpress      # makes kvpress's environment the first time

Both read the same 1,536 tokens, keep the same number of entries per KV head, and predict the next
64 tokens from them. kvpress reads the prompt densely and compresses once at its end, so the whole
prompt must fit into memory; ours evicts every 64 tokens and holds no more than budget + interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.draw import table
from benchmarks.engine.peers import KVPRESS, environment
from benchmarks.process import SCRIPTS
from benchmarks.record import write_result
from benchmarks.workload import DENSE, novel_ids
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.evaluation import at_budget, continuation_score, open_runner
from llamahome.models import LoadedModel, load_model

POLICIES = ["h2o", "snapkv", "tova", "keydiff", "window", "random"]
PROMPT, SCORED = 1536, 64
SHARES = (0.1, 0.2)


def theirs(python: Path, model: Path, windows: list[list[int]], entries: list[int]) -> list[Any]:
    asked = {
        "model": str(model),
        "prompt_tokens": PROMPT,
        "windows": windows,
        "entries": entries,
    }
    done = subprocess.run(
        [str(python), str(SCRIPTS / "kvpress_nll.py")],
        input=json.dumps(asked),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return list(json.loads(done.stdout))


def ours(loaded: LoadedModel, policy: PolicyConfig, windows: list[list[int]]) -> float:
    exact = EngineConfig(weights="fp32")  # as kvpress computes
    runner = open_runner(loaded.model, build_policy(policy), exact, max_length=PROMPT + SCORED)
    # The first token after the prompt is read, not scored, as on kvpress's side.
    total = sum(
        continuation_score(runner, ids[: PROMPT + 1], ids[PROMPT + 1 :])[0] for ids in windows
    )
    return -total / len(windows) / (SCORED - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    options = parser.parse_args()
    console = Console()
    python = environment(KVPRESS, options.work.resolve() / "envs")
    loaded = load_model(ModelConfig())
    length = PROMPT + SCORED
    ids = novel_ids()
    windows = [ids[n * length : (n + 1) * length] for n in range(options.windows)]
    entries = [round(share * PROMPT) for share in SHARES]
    policies = [at_budget(PolicyConfig(), name, count) for name in POLICIES for count in entries]
    dense = ours(loaded, DENSE, windows)
    own = {
        (policy.name, policy.budget): ours(loaded, policy, windows)
        for policy in track(policies, "ours", console=console)
    }
    with console.status("kvpress"):
        peer = {
            (row["press"], row["entries"]): row["nll"]
            for row in theirs(python, loaded.path, windows, entries)
        }
    show(own, peer, dense, console)
    result = {
        "windows": options.windows,
        "dense_nll": dense,
        "policies": [
            {"policy": name, "entries": entries, "nll": nll, "kvpress_nll": peer[name, entries]}
            for (name, entries), nll in own.items()
        ],
    }
    console.print(f"result in {write_result('kvpress', result)}")
    print(json.dumps(result))


def show(
    own: dict[tuple[str, int | None], float],
    peer: dict[tuple[str, int | None], float],
    dense: float,
    console: Console,
) -> None:
    columns = ("entries", "ours", "over dense", "kvpress", "over dense")
    title = f"NLL of {SCORED} tokens after {PROMPT}; dense {dense:.4f}"
    shown = table(title, ["policy"], columns)
    for (name, entries), nll in own.items():
        other = peer[name, entries]
        shown.add_row(
            name,
            str(entries),
            f"{nll:.4f}",
            f"{nll - dense:+.4f}",
            f"{other:.4f}",
            f"{other - dense:+.4f}",
        )
    console.print(shown)


if __name__ == "__main__":
    main()
