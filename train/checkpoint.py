"""Checkpoints: every worker writes its shards into the run's folder, complete or not at all.

A checkpoint is written under a name that ends in `.partial` and renamed once all of its files are
hashed. The driver compares the hashes before a run is resumed; a restart within a run trusts them.
Those set aside, as damaged or diverged, stay until the run has saved a later one or its model.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from llamahome.models import ModelError
from llamahome.models.checksums import file_digests, record_checksums, verify_checksums
from train.errors import CheckpointError
from train.resharding import fits, resharded

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # it looks for its device when it is imported

TAG = "deepspeed"
PARTIAL, WHOLE = ".partial", ".universal"  # being written, and being read by other workers
UNFINISHED = (PARTIAL, WHOLE)
SET_ASIDE = (".damaged", ".diverged")


@dataclass
class Progress:
    """Progress of a run, saved with weights and optimiser state.

    Attributes:
        step: optimiser steps done.
        tokens: tokens read by all workers.
        best_loss, best_step: lowest held-out loss after a step, and that step; None before any.
        worse: evaluations since then.
    """

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0

    def evaluated(self, loss: float) -> None:
        """Take in a held-out loss; one at the step of the lowest is that one again."""
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.worse = loss, self.step, 0
        elif self.step != self.best_step:
            self.worse += 1


def save(
    engine: DeepSpeedEngine, run_dir: Path, progress: Progress, *, frozen: bool, keep: int
) -> None:
    """Write a checkpoint together with all other workers, and remove those that are too old.

    Args:
        frozen: leave out the parameters that are not trained (LoRA).
        keep: newest checkpoints kept.
    """
    path = path_of(run_dir, progress.step)
    partial = path.with_suffix(PARTIAL)
    if dist.get_rank() == 0:
        remove_unfinished(run_dir)
    dist.barrier()
    engine.save_checkpoint(
        str(partial), tag=TAG, client_state=asdict(progress), exclude_frozen_parameters=frozen
    )
    digests = _digests_of_all(partial)
    if dist.get_rank() == 0:
        record_checksums(partial, digests)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        for old in checkpoints(run_dir)[keep:]:
            if steps_in(old) != progress.best_step:
                shutil.rmtree(old)
        remove_set_aside(run_dir, progress.step)
    dist.barrier()


def _digests_of_all(folder: Path) -> dict[str, str]:
    """Hash a folder's files, each worker a share of them."""
    dist.barrier()
    rank, workers = dist.get_rank(), dist.get_world_size()
    shares: list[dict[str, str]] = [{} for _ in range(workers)]
    dist.all_gather_object(shares, file_digests(folder, rank, workers))
    return {name: digest for share in shares for name, digest in share.items()}


def resume(engine: DeepSpeedEngine, run_dir: Path, frozen: bool) -> Progress:
    """Load the newest checkpoint, if there is one, and return its progress."""
    found = checkpoints(run_dir)
    return load(engine, found[0], frozen) if found else Progress()


def load(engine: DeepSpeedEngine, path: Path, frozen: bool) -> Progress:
    """Load a checkpoint, also one of another number of workers, and return its progress."""
    state: dict[str, Any]
    whole: AbstractContextManager[Path] = nullcontext(path)
    if not fits(path / TAG):
        whole = resharded(engine, path / TAG, path.with_suffix(WHOLE))
    with whole as folder:
        _, state = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not frozen)
    _place_counts(engine)
    return Progress(**{field.name: state[field.name] for field in fields(Progress)})


def _place_counts(engine: DeepSpeedEngine) -> None:
    """Put AdamW's counts of steps where its fused kernel reads them: on the weights' device."""
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)  # ZeRO's own wraps it
    for parameter, state in base.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device)


def path_of(run_dir: Path, step: int) -> Path:
    """Return the place of a step's checkpoint."""
    return _place(run_dir) / f"step-{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the finished checkpoints of a run, the newest first."""
    found = [path for path in _place(run_dir).glob("step-*") if not path.suffix]
    return sorted(found, key=steps_in, reverse=True)


def steps_in(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint's name says."""
    return int(checkpoint.stem.removeprefix("step-"))


def find_intact(run_dir: Path) -> tuple[int, list[str]]:
    """Check the checkpoints of a run before it is resumed, from the newest to the first intact one.

    Damaged ones are renamed, so that workers resume from the intact one.

    Returns:
        The steps in the intact one, 0 for a run without checkpoints; and one line for each damaged.

    Raises:
        CheckpointError: for a run whose checkpoints are all damaged.
    """
    damaged: dict[Path, str] = {}
    for path in checkpoints(run_dir):
        try:
            verify_checksums(path, "it is set aside")
        except ModelError as error:
            damaged[path] = str(error)
            continue
        return steps_in(path), [
            f"checkpoint {set_aside(bad, 'damaged').name}: {reason}"
            for bad, reason in damaged.items()
        ]
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {_place(run_dir)} is intact (the newest: "
            f"{next(iter(damaged.values())).partition(';')[0]}); restore one from a copy, choose "
            f"a new trainer.run_name, or remove {run_dir} to begin again"
        )
    return 0, []


def set_aside(checkpoint: Path, reason: str) -> Path:
    """Rename a checkpoint so that no run resumes from it, and return its new path."""
    aside = checkpoint.with_suffix(f".{reason}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def remove_set_aside(run_dir: Path, step: int) -> None:
    """Remove damaged and diverged checkpoints up to a step that the run has done well."""
    for aside in _with_suffix(run_dir, SET_ASIDE):
        if steps_in(aside) <= step:
            shutil.rmtree(aside)


def remove_unfinished(run_dir: Path) -> None:
    """Remove what a worker that was killed or had no space left half written."""
    for unfinished in _with_suffix(run_dir, UNFINISHED):
        shutil.rmtree(unfinished, ignore_errors=True)


def _with_suffix(run_dir: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [path for path in _place(run_dir).glob("step-*") if path.suffix in suffixes]


def _place(run_dir: Path) -> Path:
    return run_dir / "checkpoints"
