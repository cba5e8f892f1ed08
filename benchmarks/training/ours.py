"""A run of `python -m train`, timed from outside: everything between two steps counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.training.orders import Order, Taken, differences
from train import metrics

RUN = "timed"
POLL_S = 0.005
WORKER = "RayTrainWorker"  # in the name that Ray gives to the process


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
    file, size = folder / metrics.FILE_NAME, 0
    ends: list[float] = []
    cpu_ends: list[Usage] = []
    losses: list[float] = []
    peak = 0.0
    while run.poll() is None:
        time.sleep(POLL_S)
        if not file.exists() or file.stat().st_size == size:
            continue
        now, size = time.perf_counter(), file.stat().st_size
        known, losses = len(losses), [r["loss"] for r in metrics.read(folder) if "loss" in r]
        if len(losses) > known or not ends:
            ends.append(now)
            cpu_ends.append(_usage(run))
            peak = max(peak, cpu_ends[-1].peak_mib)
    return Taken(
        seconds=differences(ends),
        cpu_seconds=differences([usage.worker for usage in cpu_ends]),
        others=differences([usage.others for usage in cpu_ends]),
        losses=losses,
        peak_mib=peak,
    )


@dataclass(frozen=True)
class Usage:
    """Use that the processes of a run have made of the machine so far.

    Attributes:
        worker, others: CPU seconds of the worker, and of all other processes.
        peak_mib: most memory that any of them has held.
    """

    worker: float
    others: float
    peak_mib: float


def _usage(run: subprocess.Popen[bytes]) -> Usage:
    worker = others = peak = 0.0
    for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            used = process.cpu_times()
            if any(WORKER in word for word in process.cmdline()):
                worker += used.user + used.system
            else:
                others += used.user + used.system
            peak = max(peak, _peak_mib(process))
    return Usage(worker, others, peak)


def _peak_mib(process: psutil.Process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
