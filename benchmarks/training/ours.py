"""A run of `python -m train`, timed from outside: everything between two steps counts."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.training.orders import Order, Taken
from train import metrics

RUN = "timed"
POLL_S = 0.002


def train(overrides: Sequence[str], order: Order, folder: Path) -> Taken:
    """Train with one worker, as a user does, and return what the steps took.

    Raises:
        RuntimeError: for a run that failed, with the end of what it said.
    """
    asked = {
        "trainer.run_name": RUN,
        "trainer.output_dir": folder,
        "trainer.steps": order.steps,
        "trainer.batch_size": order.batch_size,
        "trainer.learning_rate": order.learning_rate,
        "trainer.schedule": "constant",
        "trainer.warmup_steps": 0,
        "trainer.num_workers": 1,
        "trainer.cpus_per_worker": order.threads,
        "trainer.eval_every": 0,
        "trainer.eval_batches": 1,
        "trainer.checkpoint_every": 0,
        "cluster.num_cpus": order.threads,
    }
    command = [sys.executable, "-m", "train", "tracking=disabled", *overrides]
    command += [f"{key}={value}" for key, value in asked.items()]
    log = folder / "train.log"
    with log.open("w") as said:
        run = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        taken = _follow(run, folder / RUN)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGINT)
            run.wait()
    if run.returncode:
        raise RuntimeError(f"`python -m train` failed: {log.read_text()[-500:]}")
    return taken


def _follow(run: subprocess.Popen[bytes], folder: Path) -> Taken:
    """Note when each step is reported, until the run ends.

    The first interval begins with the evaluation before the first step.
    """
    ends: list[float] = []
    losses: list[float] = []
    peak = 0.0
    while run.poll() is None:
        time.sleep(POLL_S)
        records = metrics.read(folder) if folder.is_dir() else []
        steps = [record for record in records if "loss" in record]
        if records and not ends:
            ends.append(time.perf_counter())
        if len(steps) > len(losses):
            ends.append(time.perf_counter())
            losses = [record["loss"] for record in steps]
            peak = max(peak, _peak_mib(run))
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    return Taken(seconds=seconds, losses=losses, peak_mib=peak)


def _peak_mib(run: subprocess.Popen[bytes]) -> float:
    """Return the most memory that any process of a run has held."""
    peaks = [0.0]
    for process in psutil.Process(run.pid).children(recursive=True):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)
