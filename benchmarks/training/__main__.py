"""Training compared, side by side: ours, plain PyTorch, transformers' Trainer and TRL.

    python -m benchmarks.training                                # half an hour on two quiet cores
    python -m benchmarks.training --parts text --steps 8 --turns 2           # some 7 minutes
    python -m benchmarks.training --parts text chats long        # with a step of 8,192 tokens

Each program trains all weights of the embedded model in fp32, dense, on the same rows in the same
order, in a process of its own; they take turns. All have the same AdamW, torch's fused one. `ours`
is `python -m train`, so Ray and DeepSpeed are in its steps. `text` has rows of 256 tokens; `chats`
are the shipped ones, padded in random order (the default of both trainers), padded by length, or
packed. Other programs on the machine change CPU seconds less than the clock, so both are shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import train_cost
from benchmarks.draw import table
from benchmarks.record import write_result
from benchmarks.training import ours
from benchmarks.training.orders import Order, Taken, rows_of
from llamahome.config import DataConfig, ModelConfig
from llamahome.models import LoadedModel, load_model

TEXT = DataConfig(format="text", train_file="datasets/emma.txt.gz", context_length=256)
CHATS = DataConfig(
    train_file="datasets/wordnet_train.jsonl", eval_file="datasets/wordnet_eval.jsonl"
)
TOGETHER = 12  # chats of a padded step, about as many tokens as a packed row
WARM_UP = 2  # steps that are not counted
LONGEST = 8192
PARTS = ("text", "chats", "long")


@dataclass(frozen=True)
class Arm:
    """One program on one kind of rows."""

    rows: str
    program: str
    order: Order
    run: Callable[[Order], Taken]


@dataclass(kw_only=True)
class Speed:
    """Figures of an arm, of all its turns.

    Attributes:
        cpu_per_token, others_per_token: CPU seconds of the process that trains, and of the
            program's other processes.
    """

    rows: str
    program: str
    losses: list[float]
    tokens_per_second: list[float] = field(default_factory=list)
    cpu_per_token: list[float] = field(default_factory=list)
    others_per_token: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def best(self) -> float:
        """Tokens/s of the fastest turn, which other programs delayed least."""
        return max(self.tokens_per_second)

    @property
    def cpu(self) -> float:
        """CPU seconds per token of the turn that took fewest."""
        return min(self.cpu_per_token)


def peer(name: str) -> Callable[[Order], Taken]:
    """Return what trains with another program, in a process of its own."""

    def run(order: Order) -> Taken:
        command = [sys.executable, "-m", "benchmarks.training.peers", name]
        done = subprocess.run(
            command, input=json.dumps(asdict(order)), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-500:]}")
        return Taken(**json.loads(done.stdout.splitlines()[-1]))

    return run


def ourselves(*overrides: str) -> Callable[[Order], Taken]:
    """Return what trains with `python -m train`, dense."""

    def run(order: Order) -> Taken:
        with tempfile.TemporaryDirectory() as folder:
            return ours.train(["policy=full", *overrides], order, Path(folder))

    return run


def arms(loaded: LoadedModel, steps: int, threads: int, parts: Sequence[str]) -> list[Arm]:
    """Return the arms of some parts."""

    def order(data: DataConfig, batch_size: int, together: int) -> Order:
        rows = rows_of(data, loaded, steps * batch_size // together, together)
        return Order(rows=rows, steps=steps, batch_size=batch_size, threads=threads)

    found = []
    if "text" in parts:
        text = order(TEXT, 1, 1)
        own_text = ("data=text", f"data.context_length={TEXT.context_length}")
        found += [
            Arm("text", "plain", text, peer("plain")),
            Arm("text", "ours", text, ourselves(*own_text)),
            Arm("text", "trainer", text, peer("trainer")),
            Arm("text", "trl", text, peer("trl")),
        ]
    if "chats" in parts:
        padded = replace(CHATS, batching="padding")
        by_length = order(padded, TOGETHER, TOGETHER)
        random = order(padded, TOGETHER, 1)  # rows that come one by one are in random order
        packed = order(replace(CHATS, batching="packing"), 1, 1)
        found += [
            Arm("chats, padded", "trainer", random, peer("trainer")),
            Arm("chats, by length", "ours", by_length, ourselves("data.batching=padding")),
            Arm("chats, packed", "ours", packed, ourselves("data.batching=packing")),
        ]
    return found


def turn(arm: Arm, speeds: dict[tuple[str, str], Speed]) -> None:
    """Run one arm, and add what it took."""
    taken = arm.run(arm.order)
    own = speeds.setdefault(
        (arm.rows, arm.program), Speed(rows=arm.rows, program=arm.program, losses=taken.losses)
    )
    counted = sum(len(row["input_ids"]) for row in arm.order.rows[WARM_UP * arm.order.batch_size :])
    own.tokens_per_second.append(counted / sum(taken.seconds[WARM_UP:]))
    own.cpu_per_token.append(sum(taken.cpu_seconds[WARM_UP:]) / counted)
    own.others_per_token.append(sum(taken.others[WARM_UP:]) / counted)
    own.peak_mib = max(own.peak_mib, taken.peak_mib)


# Name, arm, and the arm that it is compared with; how many times as many tokens/s.
COMPARED = (
    ("dense_over_plain", ("text", "ours"), ("text", "plain")),
    ("dense_over_trainer", ("text", "ours"), ("text", "trainer")),
    ("dense_over_trl", ("text", "ours"), ("text", "trl")),
    ("packed_over_padded", ("chats, packed", "ours"), ("chats, padded", "trainer")),
    ("packed_over_by_length", ("chats, packed", "ours"), ("chats, by length", "ours")),
)


def ratios(speeds: dict[tuple[str, str], Speed]) -> dict[str, float]:
    """Return tokens/s of ours over those of others, by the clock and by CPU seconds.

    `overhead_per_step` is what a step of ours takes more than plain PyTorch's, of the same
    operations; `others_per_step` is the work of Ray's other processes meanwhile, over a step.
    """
    found = {}
    for name, own, other in COMPARED:
        if own in speeds and other in speeds:
            found[name] = speeds[own].best / speeds[other].best
            found[f"{name}_cpu"] = speeds[other].cpu / speeds[own].cpu
    if "dense_over_plain" in found:
        ours = speeds["text", "ours"]
        found["overhead_per_step"] = 1 / found["dense_over_plain"] - 1
        found["overhead_per_step_cpu"] = 1 / found["dense_over_plain_cpu"] - 1
        found["others_per_step"] = min(ours.others_per_token) / ours.cpu
    return found


def long_step(steps: int) -> dict[str, float]:
    """Return speed and memory of hybrid attention over dense, at the longest context."""
    dense, hybrid = (
        train_cost.measure_apart(kind, LONGEST, "h2o", 0.1, steps) for kind in ("dense", "hybrid")
    )
    return {
        f"hybrid_over_dense_{LONGEST}": hybrid.tokens_per_second / dense.tokens_per_second,
        f"hybrid_memory_over_dense_{LONGEST}": hybrid.peak_mib / dense.peak_mib,
    }


def show(speeds: dict[tuple[str, str], Speed], console: Console) -> None:
    columns = ["tokens/s", "all turns", "CPU ms/token", "peak MiB", "first loss", "last loss"]
    shown = table("Dense training of all weights, fp32", ["rows", "program"], columns)
    for own in speeds.values():
        shown.add_row(
            own.rows,
            own.program,
            f"{own.best:.0f}",
            " ".join(f"{speed:.0f}" for speed in own.tokens_per_second),
            f"{1000 * own.cpu:.2f}",
            f"{own.peak_mib:.0f}",
            f"{own.losses[0]:.4f}",
            f"{own.losses[-1]:.4f}",
        )
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2], help="what to run")
    asked = parser.parse_args()
    console = Console()
    loaded = load_model(ModelConfig())
    all_arms = arms(loaded, asked.steps + WARM_UP, asked.threads, asked.parts)
    speeds: dict[tuple[str, str], Speed] = {}
    for arm in track(all_arms * asked.turns, "training", console=console):
        turn(arm, speeds)
    show(speeds, console)
    found = ratios(speeds) | (long_step(asked.turns) if "long" in asked.parts else {})
    result = {
        "threads": asked.threads,
        "steps": asked.steps,
        "speeds": [asdict(own) for own in speeds.values()],
        "ratios": found,
    }
    console.print(f"result in {write_result('training', result)}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
