"""Runs of one or two workers: the first is the test's own process, the second another one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from llamahome.config import TrainRoot
from tests.train.engine import worker
from tests.train.test_worker import start

REPOSITORY = Path(__file__).parents[2]
OTHER = "import sys; from tests.train.two_workers import join; join(sys.argv[1])"


@dataclass(frozen=True)
class Part:
    """A part of a run, from its newest checkpoint on.

    Attributes:
        root: its config; as many workers as it says take part.
        until: the step after which a checkpoint is written and the part ends.
    """

    root: TrainRoot
    run_dir: Path
    until: int


def train_parts(parts: Sequence[Part], meet: Path) -> None:
    """Train parts of runs, one after another; `meet` is a folder in which workers meet."""
    meet.mkdir()
    (meet / "parts").write_bytes(pickle.dumps(parts))
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(meet)], cwd=REPOSITORY)
    try:
        for number, part in enumerate(parts):
            _train(part, meet / str(number), rank=0)
        assert other.wait(timeout=600) == 0
    finally:
        other.kill()
        other.wait()


def join(folder: str) -> None:
    """Be the second worker of the parts that have one."""
    torch.set_num_threads(1)
    meet = Path(folder)
    for number, part in enumerate(pickle.loads((meet / "parts").read_bytes())):
        if part.root.trainer.num_workers == 2:
            _train(part, meet / str(number), rank=1)


def _train(part: Part, meet: Path, rank: int) -> None:
    with worker(meet, rank, part.root.trainer.num_workers):
        set_seed(part.root.trainer.seed)  # as a worker's process does
        training: Any = start(part.root, part.run_dir)
        while training.progress.step < part.until:
            training.step()
        training.evaluate()
        training.save()
