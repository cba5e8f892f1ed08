"""Start-up on one core: `import llamahome.engine`, and the first answer of `llamahome generate`.

    python -m benchmarks.startup [--rounds 5]

Each round runs every command once, in turn, as a process of its own on one core; the table shows
medians. The kernels are built and the model is converted before. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llamahome.models import EMBEDDED_MODEL, ModelManager
from llamahome.native import load_native

PROMPT = "The capital of France is"
TOKENS = 8
THEIRS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": sys.argv[2]}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
model.generate(**ids, max_new_tokens=int(sys.argv[3]), do_sample=False)
"""


def main(rounds: Annotated[int, typer.Option(help="Runs of each command.")] = 5) -> None:
    """Time start-up on one core, next to transformers' own."""
    folder = str(ModelManager().resolve(EMBEDDED_MODEL))
    load_native()
    generate = [str(Path(sys.executable).with_name("llamahome")), "generate"]
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import llamahome.engine": [sys.executable, "-c", "import llamahome.engine"],
        "llamahome generate": [*generate, "--max-tokens", str(TOKENS), PROMPT],
        "transformers generate": [sys.executable, "-c", THEIRS, folder, PROMPT, str(TOKENS)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with typer.progressbar(range(rounds), label="rounds", file=sys.stderr) as bar:
        for _ in bar:
            for name, command in commands.items():
                seconds[name].append(_seconds(command))
    _report({name: statistics.median(own) for name, own in seconds.items()}, seconds, rounds)


def _seconds(command: list[str]) -> float:
    core = min(os.sched_getaffinity(0))
    begin = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return time.perf_counter() - begin


def _report(medians: dict[str, float], seconds: dict[str, list[float]], rounds: int) -> None:
    table = Table(title=f"start-up on one core, median of {rounds} rounds")
    for heading in ("process", "seconds", "least", "most"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    for name, median in medians.items():
        least, most = min(seconds[name]), max(seconds[name])
        table.add_row(name, f"{median:.2f}", f"{least:.2f}", f"{most:.2f}")
    Console().print(table)
    ours, theirs = medians["llamahome generate"], medians["transformers generate"]
    rounded = {name: round(median, 2) for name, median in medians.items()}
    print(json.dumps({"rounds": rounds, **rounded, "times faster": round(theirs / ours, 2)}))


if __name__ == "__main__":
    typer.run(main)
