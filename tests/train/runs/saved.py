"""Folders of runs, written as the driver and the workers write them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamahome.config import ModelConfig, PolicyConfig, TrainerConfig, TrainRoot
from train import metrics
from train.runs.folder import RUN_FILE

CURVE: list[metrics.Record] = [
    {"peak_flops": 2e12, "peak": "2 x CPU"},
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.9, "grad_norm": 1.5, "tokens": 1000, "tokens_per_second": 50.0}
    | {"mfu": 0.2, "memory_gb": [1.0, 1.5], "seconds_left": 3.0},
    {"step": 2, "loss": 2.7, "grad_norm": 0.5, "tokens": 2000, "tokens_per_second": 70.0}
    | {"mfu": 0.4, "memory_gb": [1.25, 1.5], "seconds_left": 0.0},
    {"step": 2, "eval_loss": 2.5},
]


def save_run(
    runs_dir: Path,
    name: str,
    records: Sequence[metrics.Record] = CURVE,
    *,
    finished: bool = True,
    started: int = 0,
    budget: int = 256,
    **trainer: Any,
) -> Path:
    """Write a run's folder, started `started` seconds after the first, and return it."""
    directory = runs_dir / name
    directory.mkdir(parents=True)
    root = TrainRoot(
        model=ModelConfig(name="small-llama"),
        policy=PolicyConfig(budget=budget),
        trainer=TrainerConfig(run_name=name, **{"steps": 2, **trainer}),
    )
    file = directory / RUN_FILE
    file.write_text(json.dumps(asdict(root)))
    os.utime(file, (1e9 + started, 1e9 + started))
    for record in records:
        metrics.append(directory, record)
    if finished:
        (directory / "model").mkdir()
        (directory / "model" / "weights").write_bytes(b"x" * 5000)
    return directory
