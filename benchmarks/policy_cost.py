"""Cost of a policy while it serves: decode and prefill, next to `window`, which computes nothing.

    python -m benchmarks.policy_cost [--rounds 20] [--budget 205]

All policies have equal budgets. In each round every policy reads a chunk of a prompt, and then
decodes a chunk token by token, so that each pays for a compaction. The table shows medians of
ratios to `window` in the same round. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.record import write_result
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine.runners.build import build_runner
from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.models import LoadedModel, load_model

POLICIES = ("window", "h2o", "keydiff", "learned")
INTERVAL = 64
FEW = 4  # chunks that fill the cache before the first round

Speeds = dict[str, dict[str, list[float]]]


def main(
    rounds: Annotated[int, typer.Option(help="Chunks of each kind and policy.", min=1)] = 20,
    budget: Annotated[int, typer.Option(help="Entries per KV head.", min=68)] = 205,
    slots: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads; 0 is torch's number.", min=0)] = 0,
) -> None:
    """Time policies in turns."""
    speeds, runner = measure(rounds, budget, slots, threads)
    _report(speeds, budget, slots, runner)


def measure(rounds: int, budget: int, slots: int, threads: int) -> tuple[Speeds, str]:
    """Return the tokens/s of each kind, policy and round, and the runner's name."""
    loaded = load_model(ModelConfig())
    length = (2 * rounds + 2 * FEW) * INTERVAL
    engine = EngineConfig(slots=slots, max_length=length, num_threads=threads)
    runners = {name: _runner(loaded, name, budget, engine) for name in POLICIES}
    speeds: Speeds = {kind: {name: [] for name in POLICIES} for kind in ("prefill", "decode")}
    with typer.progressbar(range(FEW + rounds), label="rounds") as bar:
        for round_ in bar:
            for kind, run in (("prefill", _prefill), ("decode", _decode)):
                for name, runner in runners.items():
                    seconds = _seconds(run, runner, slots)
                    if round_ >= FEW:
                        speeds[kind][name].append(slots * INTERVAL / seconds)
    return speeds, runners["window"].name


def over_window(speeds: Speeds, name: str, kind: str) -> float:
    """Return the median of a policy's speed over that of `window` in the same round."""
    pairs = zip(speeds[kind][name], speeds[kind]["window"], strict=True)
    return statistics.median(own / window for own, window in pairs)


def _runner(loaded: LoadedModel, name: str, budget: int, engine: EngineConfig) -> Runner:
    config = PolicyConfig(name=name, budget=budget, recent=INTERVAL, interval=INTERVAL)
    return build_runner(loaded.model, build_policy(config, loaded.model), engine)


def _seconds(run: Callable[[Runner, int], None], runner: Runner, slots: int) -> float:
    begin = time.perf_counter()
    run(runner, slots)
    return time.perf_counter() - begin


def _tokens(count: int) -> list[int]:
    return torch.randint(100, 4000, (count,)).tolist()


def _prefill(runner: Runner, slots: int) -> None:
    runner.forward([RowInput(slot=slot, tokens=_tokens(INTERVAL)) for slot in range(slots)])


def _decode(runner: Runner, slots: int) -> None:
    for _ in range(INTERVAL):
        runner.forward([RowInput(slot=slot, tokens=_tokens(1)) for slot in range(slots)])


def _report(speeds: Speeds, budget: int, slots: int, runner: str) -> None:
    table = Table(title=f"{slots} requests, {budget} entries a head; {runner}")
    for column in ("policy", "prefill tok/s", "over window", "decode tok/s", "over window"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    ratios: dict[str, dict[str, float]] = {}
    for name in POLICIES:
        row = [name]
        ratios[name] = {}
        for kind, by_policy in speeds.items():
            ratios[name][kind] = over_window(speeds, name, kind)
            row += [f"{statistics.median(by_policy[name]):.0f}", f"{ratios[name][kind]:.3f}"]
        table.add_row(*row)
    Console().print(table)
    result = {"budget": budget, "slots": slots, "runner": runner, "over_window": ratios}
    write_result("policy-cost", result)
    print(json.dumps({"decode_ratio_learned_over_window": ratios["learned"]["decode"], **result}))


if __name__ == "__main__":
    typer.run(main)
