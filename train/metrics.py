"""Records of a run, one JSON line each: steps, evaluations, checkpoints, failures, warnings.

The workers append and the driver follows. Only the file connects them, and it outlives both. A
step's record holds numbers, or a list with one of each worker; which ones is up to the objective.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]
Observer = Callable[[Record], None]

FILE_NAME = "metrics.jsonl"
SAMPLES = "samples.jsonl"  # answers of the model at each evaluation (train.samples)
POLL_S = 0.2


def append(run_dir: Path, record: Record, file_name: str = FILE_NAME) -> None:
    """Add one record in one write, so that a worker killed at any moment leaves whole lines."""
    with (run_dir / file_name).open("ab", buffering=0) as file:
        file.write(json.dumps(record).encode() + b"\n")


def read(run_dir: Path, file_name: str = FILE_NAME) -> list[Record]:
    """Return all records, oldest first; steps repeated after a restart appear again."""
    path = run_dir / file_name
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def series(records: Sequence[Record], name: str) -> dict[int, Any]:
    """Return one metric by step, in order; steps repeated after a restart replace the former."""
    values: dict[int, Any] = {}
    for record in records:
        if name in record:
            while values and next(reversed(values)) >= record["step"]:
                values.popitem()
            values[record["step"]] = record[name]
    return values


def samples(run_dir: Path) -> list[Record]:
    """Return the answers at each evaluation; those of a restart replace the former."""
    found = read(run_dir, SAMPLES)
    return list({(sample["step"], sample["prompt"]): sample for sample in found}.values())


@contextmanager
def follow(run_dir: Path, observers: Sequence[Observer]) -> Iterator[None]:
    """Hand every record that is added during the block to `observers`, in a thread."""
    path = run_dir / FILE_NAME
    path.touch()
    done = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="metrics") as executor:
        following = executor.submit(_follow, path, path.stat().st_size, observers, done)
        try:
            yield
        finally:
            done.set()
        following.result()


def _follow(path: Path, offset: int, observers: Sequence[Observer], done: threading.Event) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            last_look = done.wait(POLL_S)
            for record in _new_records(file):
                for observe in observers:
                    observe(record)
            if last_look:
                return


def _new_records(file: BinaryIO) -> Iterator[Record]:
    while line := file.readline():
        if not line.endswith(b"\n"):  # shared storage may show a line before its end
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield json.loads(line)
