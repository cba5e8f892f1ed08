"""Our engine compared with transformers, llama.cpp, vLLM's CPU build and kvpress.

    python -m benchmarks.engine --install-peers   # their environments; slow the first time
    python -m benchmarks.engine                   # all of it, at most 40 minutes: make bench-engine
    python -m benchmarks.engine --quick           # short contexts, some 3 minutes

Every engine runs the same model in a process of its own. For each cell (requests x context) all of
them fill their caches with the same tokens of a novel, then take turns at decoding, while the
others are stopped. An engine that does not install, or fails, is left out of the ratios; the report
says so.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.engine.arms import Setting, install, our_arms, peer_arms
from benchmarks.engine.peers import PEERS
from benchmarks.engine.report import plot, show
from benchmarks.engine.results import ratios
from benchmarks.engine.run import FULL, QUICK, Run
from benchmarks.record import write_result
from benchmarks.workload import novel_ids
from llamahome.config import EngineConfig
from llamahome.models import EMBEDDED_MODEL, ModelManager
from llamahome.models.embedded import embedded_gguf

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "engine.png"
COMPARED = ("llama_cpp", "vllm_cpu", "transformers")  # engines with a ratio of their own


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install-peers", action="store_true", help="only make environments")
    parser.add_argument("--quick", action="store_true", help="short contexts; keeps no result")
    parser.add_argument("--peers", nargs="*", default=[p.name for p in PEERS], help="which of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=36, help="start no cell later than this")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="EngineConfig")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    return parser.parse_args(arguments)


def setting_of(options: argparse.Namespace, ids: list[int]) -> Setting:
    pairs = (text.split("=", 1) for text in options.set)
    chosen = {key: int(value) if value.isdigit() else value for key, value in pairs}
    return Setting(
        model=EMBEDDED_MODEL,
        folder=ModelManager().resolve(EMBEDDED_MODEL),
        gguf=embedded_gguf(),
        threads=options.threads,
        probe=ids[:1024],
        # No peer drafts tokens here; benchmarks.speculation measures what that gains.
        engine={"draft_tokens": 0, **chosen},
        work=options.work,
    )


def main() -> None:
    options, console = parsed(), Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    wanted = [peer for peer in PEERS if peer.name in options.peers]
    pythons, missing = install(wanted, options.work.resolve() / "envs", say)
    if options.install_peers:
        print(json.dumps({"installed": sorted(pythons), "peers_missing": missing}))
        return
    ids = novel_ids()
    setting = setting_of(options, ids)
    form = QUICK if options.quick else FULL
    arms = [*our_arms(setting), *peer_arms(setting, pythons)]
    results = Run(form, arms, setting, ids, minutes=options.minutes, say=say).all()
    results.missing |= missing
    results.missing |= {p.name: "left out by --peers" for p in PEERS if p not in wanted}
    found = ratios(results, COMPARED)
    show(results, console)
    if not options.quick:
        plot(results, IMAGE)
        whole = {
            "form": form.name,
            "threads": setting.threads,
            "engine": asdict(EngineConfig(**setting.engine)),
            "peers": {peer.name: list(peer.packages) for peer in PEERS},
            **asdict(results),
            **found,
        }
        say(f"result in {write_result('engine', whole)}, plot in {IMAGE}")
    print(json.dumps({"form": form.name, **found}))


if __name__ == "__main__":
    main()
