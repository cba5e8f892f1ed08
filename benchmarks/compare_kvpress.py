"""Our policies beside kvpress's presses: perplexity after a compressed prompt.

    python -m benchmarks.compare_kvpress      # makes kvpress's environment the first time

Both read the same 1,536 tokens, keep the same number of entries per KV head, and predict the next
64 tokens from them. kvpress reads the prompt densely and compresses once at its end, so that the
whole prompt must fit into memory; ours evicts every 64 tokens and never holds more than it keeps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, EvalConfig, ModelConfig, PolicyConfig
from llamahome.evaluation import continuation_score, measured_policies, open_runner
from llamahome.evaluation.text import load_text
from llamahome.models import LoadedModel, load_model

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).parent / "peers" / "kvpress_nll.py"
PINS = ("torch==2.13.0", "kvpress==0.5.5")  # kvpress needs an older transformers than ours
POLICIES = ["h2o", "snapkv", "tova", "keydiff", "window", "random"]
PROMPT, SCORED = 1536, 64
SHARES = (0.1, 0.2)


def environment(folder: Path) -> Path:
    """The python of kvpress's own environment."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def peers(python: Path, model: Path, windows: list[list[int]], entries: list[int]) -> list[Any]:
    asked = {
        "model": str(model),
        "prompt_tokens": PROMPT,
        "windows": windows,
        "entries": entries,
    }
    done = subprocess.run(
        [str(python), str(PEER)],
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    options = parser.parse_args()
    console = Console()
    python = environment(options.work.resolve() / "kvpress")
    loaded = load_model(ModelConfig())
    length = PROMPT + SCORED
    ids = loaded.tokenizer.encode(load_text("persuasion"), verbose=False)
    windows = [ids[n * length : (n + 1) * length] for n in range(options.windows)]
    config = EvalConfig(policies=POLICIES, budgets=list(SHARES), context=PROMPT)
    policies = measured_policies(PolicyConfig(), config, None)
    dense = ours(loaded, PolicyConfig(name="full", budget=None), windows)
    own = {
        (policy.name, policy.budget): ours(loaded, policy, windows)
        for policy in track(policies, "ours", console=console)
    }
    with console.status("kvpress"):
        theirs = {
            (row["press"], row["entries"]): row["nll"]
            for row in peers(python, loaded.path, windows, [config.entries(s) for s in SHARES])
        }
    show(own, theirs, dense, console)
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "windows": options.windows,
        "torch": torch.__version__,
        "dense_nll": dense,
        "policies": [
            {"policy": name, "entries": entries, "nll": nll, "kvpress_nll": theirs[name, entries]}
            for (name, entries), nll in own.items()
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"kvpress-{result['date']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"result in {file}")
    print(json.dumps(result))


def show(
    own: dict[tuple[str, int | None], float],
    theirs: dict[tuple[str, int | None], float],
    dense: float,
    console: Console,
) -> None:
    table = Table(title=f"NLL of {SCORED} tokens after {PROMPT}; dense {dense:.4f}")
    for column in ("policy", "entries", "ours", "over dense", "kvpress", "over dense"):
        table.add_column(column, justify="right")
    for (name, entries), nll in own.items():
        peer = theirs[name, entries]
        table.add_row(
            name,
            str(entries),
            f"{nll:.4f}",
            f"{nll - dense:+.4f}",
            f"{peer:.4f}",
            f"{peer - dense:+.4f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
