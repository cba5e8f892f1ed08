"""Cost of a training step as the context grows: hybrid attention and dense `sdpa`.

    python -m benchmarks.train_cost [--lengths 2048 4096 8192 16384] [--share 0.1]
    python -m benchmarks.train_cost --policy carried        # under the budgets of the model itself

One step is forward and backward of one sequence through the embedded model, with LoRA adapters and
activation checkpointing by layer, each kind as its own trainer sets it up: dense as transformers
does, hybrid with a walk that is not computed a second time. The loss is on the last 256 tokens, so
that the vocabulary, which costs both the same, does not hide the attention. Every figure is from a
process of its own, whose peak memory is the system's count; the two kinds take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.draw import plotted, table
from benchmarks.record import RESULTS, today, write_result

LABELS = 256  # tokens of the loss


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one training step.

    Attributes:
        kind: `dense` is transformers' own sdpa, `hybrid` the policy.
        tokens_per_second: forward and backward together.
        cpu_seconds: of all threads, by the step that took fewest. On a machine with other work, one
            thread (OMP_NUM_THREADS=1) compares by these.
        peak_mib: peak resident memory of the process, less that before the step.
    """

    kind: str
    length: int
    seconds: float
    tokens_per_second: float
    cpu_seconds: float
    peak_mib: float


def measure(kind: str, length: int, policy: str, share: float, steps: int) -> Cost:
    """Return the cost of the fastest of some steps, in this process."""
    import torch
    from peft import LoraConfig, get_peft_model

    from llamahome.attention import HybridAttention, walk_once
    from llamahome.config import ModelConfig, PolicyConfig
    from llamahome.models import load_model

    loaded = load_model(ModelConfig())
    model = loaded.model
    model.config.max_position_embeddings = max(length, model.config.max_position_embeddings)
    arguments: dict[str, object] = {"use_cache": False, "logits_to_keep": LABELS}
    checkpointing: dict[str, object] = {"use_reentrant": False}
    if kind == "hybrid":
        budget = int(share * length)
        config = PolicyConfig(name="carried", budget=None)
        if policy != "carried":
            config = PolicyConfig(name=policy, budget=budget, recent=budget // 2)
        HybridAttention.attach(model)
        chosen = loaded.policy_for(config, new_weights=True)
        arguments["hybrid"] = HybridAttention(chosen, model)
        checkpointing["context_fn"] = walk_once
    else:
        model.set_attn_implementation("sdpa")
    model.gradient_checkpointing_enable(checkpointing)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"]))
    adapted.enable_input_require_grads()
    adapted.train()
    ids = torch.randint(3, model.config.vocab_size, (1, length))
    before = _peak_mib()
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        logits = adapted(input_ids=ids, **arguments).logits
        torch.nn.functional.cross_entropy(logits[0].float(), ids[0, -LABELS:]).backward()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    fastest = min(seconds)
    return Cost(
        kind=kind,
        length=length,
        seconds=fastest,
        tokens_per_second=length / fastest,
        cpu_seconds=min(cpu_seconds),
        peak_mib=_peak_mib() - before,
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_apart(kind: str, length: int, policy: str, share: float, steps: int) -> Cost:
    """Run `measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_cost", "--one", kind]
    command += ["--lengths", str(length), "--share", str(share), "--steps", str(steps)]
    command += ["--policy", policy]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def show(costs: list[Cost], console: Console) -> None:
    columns = ("tokens", "dense tok/s", "hybrid tok/s", "ratio", "dense MiB", "hybrid MiB")
    shown = table("A training step: dense sdpa and hybrid attention", [], columns)
    for dense, hybrid in _pairs(costs):
        shown.add_row(
            f"{dense.length:,}",
            f"{dense.tokens_per_second:.0f}",
            f"{hybrid.tokens_per_second:.0f}",
            f"{hybrid.tokens_per_second / dense.tokens_per_second:.2f}",
            f"{dense.peak_mib:.0f}",
            f"{hybrid.peak_mib:.0f}",
        )
    console.print(shown)


def plot(costs: list[Cost], file: Path) -> None:
    with plotted(file, 2, (9, 3.5)) as (speed, memory):
        for kind in ("dense", "hybrid"):
            own = [cost for cost in costs if cost.kind == kind]
            lengths = [cost.length for cost in own]
            speed.plot(lengths, [cost.tokens_per_second for cost in own], marker="o", label=kind)
            memory.plot(lengths, [cost.peak_mib for cost in own], marker="o", label=kind)
        speed.set(xlabel="tokens in the sequence", ylabel="tokens/s", ylim=0)
        memory.set(xlabel="tokens in the sequence", ylabel="peak MiB of the step", ylim=0)
        speed.legend()


def _pairs(costs: list[Cost]) -> list[tuple[Cost, Cost]]:
    by_kind = {(cost.kind, cost.length): cost for cost in costs}
    lengths = sorted({cost.length for cost in costs})
    return [(by_kind["dense", n], by_kind["hybrid", n]) for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument(
        "--policy", default="h2o", help="of hybrid attention; `carried` is the model's own"
    )
    parser.add_argument(
        "--share", type=float, default=0.1, help="budget over length, unless carried"
    )
    parser.add_argument("--steps", type=int, default=2, help="the fastest counts")
    parser.add_argument("--one", choices=("dense", "hybrid"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        cost = measure(asked.one, asked.lengths[0], asked.policy, asked.share, asked.steps)
        print(json.dumps(asdict(cost)))
        return
    console = Console()
    work = [(kind, n) for n in asked.lengths for kind in ("dense", "hybrid")]
    costs = [
        measure_apart(kind, length, asked.policy, asked.share, asked.steps)
        for kind, length in track(work, "measuring", console=console)
    ]
    show(costs, console)
    plot(costs, RESULTS / f"train-cost-{today()}.png")
    result: dict[str, object] = {
        "policy": asked.policy,
        "share": asked.share,
        "costs": [asdict(cost) for cost in costs],
    }
    for dense, hybrid in _pairs(costs):
        n = dense.length
        speed = hybrid.tokens_per_second / dense.tokens_per_second
        result[f"tokens_per_second_hybrid_over_dense_{n}"] = speed
        result[f"cpu_seconds_dense_over_hybrid_{n}"] = dense.cpu_seconds / hybrid.cpu_seconds
        result[f"peak_over_dense_{n}"] = hybrid.peak_mib / dense.peak_mib
    write_result("train-cost", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
