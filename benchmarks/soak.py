"""Leaks of the engine: many small requests must give back all that they took.

    python -m benchmarks.soak [--requests 10000]

The model is a tiny random Llama, so that the engine's own bookkeeping is most of the work. Prompts
and answers have random lengths; some requests are cancelled in the queue, in prefill or in decode,
some are stopped. After a warm-up, memory and the number of Python objects must stay constant.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.draw import table
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams

VOCABULARY = 128
LONGEST = 96  # most tokens of a prompt; more than the budget
SLOTS, WAITING = 8, 4
# Growth that is no leak: arenas of the allocator, caches of Python itself.
MIB, OBJECTS = 8.0, 100


@dataclass(kw_only=True)
class Counts:
    """Requests, by the way they ended."""

    finished: int = 0
    cancelled: int = 0
    stopped: int = 0

    def add(self, other: Counts) -> None:
        self.finished += other.finished
        self.cancelled += other.cancelled
        self.stopped += other.stopped


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory and objects of the process after some requests, all of which have ended."""

    requests: int
    seconds: float
    rss_mib: float
    objects: int


def tiny_engine() -> Engine:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * LONGEST,
    )
    policy = PolicyConfig(budget=32, recent=16, interval=16)
    # Snapshots grow to their bound and stay there; a small one is reached before the first sample.
    slots = EngineConfig(
        slots=SLOTS, max_length=2 * LONGEST, max_queued=SLOTS, snapshot_bytes=2**18
    )
    return Engine(LlamaForCausalLM(config).eval(), build_policy(policy), slots)


def churn(engine: Engine, requests: int, seed: int) -> Counts:
    """Submit so many requests, and step until all have ended."""
    drawn = random.Random(seed)
    counts = Counts()
    alive: dict[str, bool] = {}  # by request: whether it decodes
    sent = 0
    while sent < requests or alive:
        while sent < requests and len(alive) < SLOTS + WAITING:
            alive[f"{seed}-{sent}"] = False
            _submit(engine, f"{seed}-{sent}", drawn)
            sent += 1
        for delta in engine.step():
            alive[delta.request_id] = True
            if delta.finish_reason is not None:
                del alive[delta.request_id]
                counts.finished += 1
        _interrupt(engine, alive, counts, drawn)
    return counts


def _interrupt(
    engine: Engine, alive: dict[str, bool], counts: Counts, drawn: random.Random
) -> None:
    if alive and drawn.random() < 0.15:
        name = drawn.choice(list(alive))
        engine.cancel(name)
        del alive[name]
        counts.cancelled += 1
    decoding = [name for name, begun in alive.items() if begun]
    if decoding and drawn.random() < 0.1:
        name = drawn.choice(decoding)
        engine.stop(name)
        del alive[name]
        counts.stopped += 1


def _submit(engine: Engine, name: str, drawn: random.Random) -> None:
    prompt = [drawn.randrange(VOCABULARY) for _ in range(drawn.randint(1, LONGEST))]
    params = SamplingParams(
        max_tokens=drawn.randint(1, 24), temperature=drawn.choice((0.0, 1.0)), ignore_eos=True
    )
    engine.submit(name, prompt, params)


def sample(requests: int, started: float) -> Sample:
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    resident = next(line for line in status if line.startswith("VmRSS"))
    return Sample(
        requests=requests,
        seconds=time.perf_counter() - started,
        rss_mib=int(resident.split()[1]) / 1024,
        objects=len(gc.get_objects()),
    )


def soak(engine: Engine, requests: int, turns: int) -> tuple[list[Sample], Counts]:
    """Run the requests in `turns` parts, and take a sample after each."""
    started = time.perf_counter()
    samples, counts = [], Counts()
    for turn in range(turns):
        counts.add(churn(engine, requests // turns, seed=turn))
        samples.append(sample((turn + 1) * (requests // turns), started))
    return samples, counts


def leaks(engine: Engine, samples: list[Sample]) -> list[str]:
    """Return what was not given back: slots, places in the queue, growth after the first fifth."""
    stats = engine.stats()
    found = []
    if stats.slots_used or stats.queued:
        found.append(f"{stats.slots_used} slots and {stats.queued} places in the queue are taken")
    warm, last = samples[(len(samples) - 1) // 5], samples[-1]
    if last.rss_mib - warm.rss_mib > MIB:
        found.append(f"memory grew by {last.rss_mib - warm.rss_mib:.1f} MiB")
    if last.objects - warm.objects > OBJECTS:
        found.append(f"{last.objects - warm.objects} more Python objects are alive")
    return found


def show(samples: list[Sample], console: Console) -> None:
    columns = ("requests", "seconds", "resident MiB", "Python objects")
    shown = table("The engine after requests that have all ended", [], columns)
    for own in samples:
        shown.add_row(
            f"{own.requests:,}", f"{own.seconds:.0f}", f"{own.rss_mib:.1f}", f"{own.objects:,}"
        )
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=20, help="number of samples")
    asked = parser.parse_args()
    engine = tiny_engine()
    samples, counts = soak(engine, asked.requests, asked.turns)
    show(samples, Console())
    found = leaks(engine, samples)
    taken = [asdict(own) for own in samples]
    print(json.dumps({**vars(asked), **asdict(counts), "samples": taken, "leaks": found}))
    if found:
        raise SystemExit("; ".join(found))


if __name__ == "__main__":
    main()
