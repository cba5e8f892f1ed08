"""Checkpoints: every worker writes its shards into the run's folder, Ray tracks the complete ones.

A step's checkpoint always has the same name, so a resumed run overwrites one that was cut short.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from deepspeed import DeepSpeedEngine
from ray.train import Checkpoint, CheckpointUploadMode

TAG = "deepspeed"


@dataclass
class Progress:
    """Progress of a run, saved with weights and optimiser state.

    Attributes:
        step: optimiser steps done.
        tokens: tokens read by all workers.
    """

    step: int = 0
    tokens: int = 0


def save(engine: DeepSpeedEngine, run_dir: Path, progress: Progress, frozen: bool) -> None:
    """Write a checkpoint together with all other workers and report it to Ray.

    Args:
        frozen: leave out the parameters that are not trained (LoRA).
    """
    path = run_dir / "checkpoints" / f"step-{progress.step:06d}"
    engine.save_checkpoint(
        str(path), tag=TAG, client_state=asdict(progress), exclude_frozen_parameters=frozen
    )
    ray.train.report(
        {"step": progress.step},
        checkpoint=Checkpoint(str(path)),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def resume(engine: DeepSpeedEngine, frozen: bool) -> Progress:
    """Load the newest complete checkpoint, if there is one, and return its progress."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    state: dict[str, Any]
    _, state = engine.load_checkpoint(checkpoint.path, tag=TAG, load_module_strict=not frozen)
    return Progress(step=state["step"], tokens=state["tokens"])
