"""Sets that are larger than memory: a process that has less for them than their tokens take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llamahome.config import checkout

PROGRAM = """
import json, resource, sys
from itertools import islice
from pathlib import Path
from llamahome.config import DataConfig, TrainerConfig
from tests.conftest import make_byte_tokenizer
from tests.train.plain_rows import plain_datasets
from train.data import batches
from train.records import build_datasets

here = Path(sys.argv[1])
line = json.dumps({"input_ids": [n % 250 for n in range(1000)]})
(here / "a.jsonl").write_text(f"{line}\\n" * 4000)
data = DataConfig(
    format="tokens",
    train_file=str(here / "a.jsonl"),
    cache_dir=str(here / "tokens"),
    context_length=1024,
)
tokenizer = make_byte_tokenizer()
status = Path("/proc/self/status").read_text()
in_use = 1024 * int(status.partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (in_use + 64 * 2**20,) * 2)
for said in ("made", "mapped"):
    rows = build_datasets(data, tokenizer, seed=0).train
    share = {"rank": 0, "world_size": 1, "start_step": 7, "pad_id": 0}
    taken = batches(rows, data, TrainerConfig(batch_size=2), **share)
    print(said, len(rows), sum(batch["labels"].numel() for batch in islice(taken, 300)))
try:
    plain_datasets(data, tokenizer, seed=0)
except MemoryError:
    print("lists do not fit")
"""


def test_rows_take_less_memory_than_their_tokens(tmp_path: Path) -> None:
    """It may take 64 MiB more than its imports; four million tokens as lists take 92 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(checkout()), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "made 3800 600000",
        "mapped 3800 600000",
        "lists do not fit",
    ], done.stderr
