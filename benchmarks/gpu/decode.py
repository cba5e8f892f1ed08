"""Decode on a GPU: kernels checked against torch, then timed against the memory's bandwidth.

    python -m benchmarks.gpu.decode [--model llama-1b] [--batch 8] [--held 4096]

It needs torch, transformers, Triton and a GPU; no Ray. A decode step must at least read every
weight and every key and value that its queries see, and read and write their mass. The bound is
those bytes over the bandwidth of a large copy in the same run. Slots are filled at random, since
their contents do not change the time. The last line is one JSON object. Without a GPU the program
says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import transformers
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.draw import table
from benchmarks.gpu.checks import check_kernels
from llamahome.attention import build_policy
from llamahome.attention.kernels import KVRecord, decode_attend
from llamahome.cache.plane import TorchPlane
from llamahome.config import ModelConfig, PolicyConfig
from llamahome.engine.runners.contract import RowInput
from llamahome.engine.runners.cuda_graphs import DecodeGraphs
from llamahome.engine.runners.torch import TorchRunner
from llamahome.models import load_model

# Llama 3.2 1B and Llama 3.1 8B: hidden, intermediate, layers, heads, KV heads. Weights at random.
SHAPES = {"llama-1b": (2048, 8192, 16, 32, 8), "llama-8b": (4096, 14336, 32, 32, 8)}
INTERVAL = 64


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of one way to decode.

    Attributes:
        milliseconds: median time of a step, with its share of the compaction every `INTERVAL`.
        tokens_per_second: of all rows together.
        gigabytes_per_second: bytes of the bound over the time.
        of_bound: the same, over the bandwidth of a copy.
    """

    arm: str
    milliseconds: float
    tokens_per_second: float
    gigabytes_per_second: float
    of_bound: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llama-1b", help=f"{', '.join(SHAPES)}, or a name")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--held", type=int, default=4096, help="entries kept per KV head")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu.decode: no GPU here; it measures nothing on a CPU", file=sys.stderr)
        return 2
    bandwidth = copy_bandwidth()
    checks = check_kernels("cuda")
    attention = time_attention(options.batch, options.held, bandwidth)
    model = build_model(options.model)
    decode = time_decode(model, options.batch, options.held, options.repeats, bandwidth)
    show([*attention, *decode], bandwidth)
    result = {
        "benchmark": "gpu_decode",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": options.model,
        "batch": options.batch,
        "held": options.held,
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "checks": checks,
        "timings": [asdict(timing) for timing in (*attention, *decode)],
        "decode_of_bound": decode[-1].of_bound,
    }
    print(json.dumps(result))
    return 0


def seconds_of(work: Callable[[], object], repeats: int = 20) -> float:
    """Return the median time of one call on the GPU."""
    work()
    torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Return the bytes per second, read and written, of a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    moved: int = source.nbytes + target.nbytes
    seconds = seconds_of(lambda: target.copy_(source))
    return moved / seconds


def build_model(name: str) -> PreTrainedModel:
    """Load or make a model in bfloat16 on the GPU."""
    if name not in SHAPES:
        return load_model(ModelConfig(name=name, dtype="bfloat16"), device="cuda").model
    hidden, intermediate, layers, heads, kv_heads = SHAPES[name]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' decorator hides `self`
    ready: PreTrainedModel = model.eval()
    return ready


def time_attention(batch: int, held: int, bandwidth: float) -> list[Timing]:
    """Time the attention of one layer: 8 KV heads of 128, groups of 4."""
    groups, dim = 8, 128
    query = torch.randn(batch, 4 * groups, 1, dim, dtype=torch.bfloat16, device="cuda")
    keys = torch.randn(batch, groups, held, dim, dtype=torch.bfloat16, device="cuda")
    mass = torch.zeros(batch, groups, held, device="cuda")
    positions = torch.zeros_like(mass, dtype=torch.int64)
    kv = KVRecord(keys=keys, values=torch.randn_like(keys), mass=mass, positions=positions)
    rows = torch.arange(batch, device="cuda")
    counts, weights = torch.full_like(rows, held), torch.ones(batch, device="cuda")

    def attend(counted: bool) -> object:
        return decode_attend(
            query,
            kv,
            rows,
            counts,
            dim**-0.5,
            weights=weights if counted else None,
            implementation="triton",
        )

    kv_bytes = kv.keys.nbytes + kv.values.nbytes
    return [
        timing(
            "attention kernel, with mass",
            seconds_of(lambda: attend(True)),
            batch,
            kv_bytes + 2 * mass.nbytes,
            bandwidth,
        ),
        timing(
            "attention kernel, no mass",
            seconds_of(lambda: attend(False)),
            batch,
            kv_bytes,
            bandwidth,
        ),
    ]


def time_decode(
    model: PreTrainedModel, batch: int, held: int, repeats: int, bandwidth: float
) -> list[Timing]:
    """Time whole steps, a chunk at a time, the arms in turns; the last arm is the fast path."""
    policy = build_policy(
        PolicyConfig(budget=held, sink=4, recent=held // 2, interval=INTERVAL, decay=256)
    )
    runner = TorchRunner(model, policy, num_slots=batch, max_length=16 * held)
    slots = runner.slots
    fill(runner, held)
    rows, tokens = list(range(batch)), [1] * batch
    inputs = [RowInput(slot=row, tokens=[1]) for row in rows]
    arms: dict[str, Callable[[], object]] = {"eager, torch": lambda: runner.forward(inputs)}
    for implementation, captures in (("triton", False), ("torch", True), ("triton", True)):
        graphs = DecodeGraphs(
            model,
            slots,
            implementation="triton" if implementation == "triton" else "torch",
            capture=captures,
        )
        name = f"{'graph' if captures else 'static'}, {implementation}"
        arms[name] = lambda graphs=graphs: graphs.decode(rows, tokens)  # type: ignore[misc]
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(repeats + 1):
        for arm, decode in arms.items():
            slots.lengths[:] = [4 * held] * batch
            times[arm].append(chunk_seconds(decode))
    moved = step_bytes(model, [p for p in slots.planes if isinstance(p, TorchPlane)], batch, held)
    return [
        timing(arm, statistics.median(seconds[1:]), batch, moved, bandwidth)  # the first warms up
        for arm, seconds in times.items()
    ]


def fill(runner: TorchRunner, held: int) -> None:
    """Fill slots at random, as if each had seen four budgets of tokens."""
    for plane in runner.slots.planes:
        assert isinstance(plane, TorchPlane)
        plane.kv.keys.normal_()
        plane.kv.values.normal_()
        plane.kv.mass.uniform_()
        plane.kv.positions.copy_(torch.arange(plane.shape.capacity, device="cuda") + 3 * held)


def chunk_seconds(decode: Callable[[], object]) -> float:
    """Return the time of a whole chunk and its compaction, per step."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(INTERVAL):
        decode()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / INTERVAL


def step_bytes(model: PreTrainedModel, planes: list[TorchPlane], batch: int, held: int) -> int:
    """Return the bytes that a step must move: every weight once, then what each row sees."""
    tied = model.config.tie_word_embeddings
    moved = 0
    for name, parameter in model.named_parameters():
        looked_up = "embed_tokens" in name and not tied
        moved += 0 if looked_up else parameter.numel() * parameter.element_size()
    seen = held + INTERVAL // 2
    for plane in planes:
        size = (
            2 * plane.shape.head_dim * plane.kv.keys.element_size()
            + 2 * plane.kv.mass.element_size()
        )
        moved += batch * len(plane.heads) * seen * size
    return moved


def timing(arm: str, seconds: float, batch: int, moved: int, bandwidth: float) -> Timing:
    return Timing(
        arm=arm,
        milliseconds=seconds * 1e3,
        tokens_per_second=batch / seconds,
        gigabytes_per_second=moved / seconds / 1e9,
        of_bound=moved / seconds / bandwidth,
    )


def show(timings: list[Timing], bandwidth: float) -> None:
    title = f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e9:.0f} GB/s"
    shown = table(title, [""], ["ms", "tokens/s", "GB/s", "of the bound"])
    for each in timings:
        shown.add_row(
            each.arm,
            f"{each.milliseconds:.3f}",
            f"{each.tokens_per_second:.0f}",
            f"{each.gigabytes_per_second:.0f}",
            f"{each.of_bound:.0%}",
        )
    Console().print(shown)


if __name__ == "__main__":
    sys.exit(main())
