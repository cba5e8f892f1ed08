"""Runs whose number of workers changes: the same global batch, and checkpoints that fit.

ZeRO's shards fit the number of workers that wrote them. DeepSpeed's universal checkpoint (Lian et
al. 2024, arXiv 2406.18820) holds each parameter and its optimiser state whole.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from llamahome.config import TrainerConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # it looks for its device when it is imported

SHARDS = "*zero_pp_rank_*_optim_states.pt"


def for_workers(trainer: TrainerConfig, workers: int) -> TrainerConfig:
    """Return the config of an elastic run for the workers that there are: the same global batch."""
    return replace(
        trainer,
        num_workers=workers,
        min_workers=None,
        accumulation=trainer.accumulation * trainer.num_workers // workers,
        eval_batches=trainer.eval_batches * trainer.num_workers // workers,
    )


def fits(checkpoint: Path) -> bool:
    """Return whether a checkpoint can be loaded as it is; without ZeRO it always can."""
    shards = len(list(checkpoint.glob(SHARDS)))
    return shards in (0, dist.get_world_size())


@contextmanager
def resharded(engine: DeepSpeedEngine, checkpoint: Path, folder: Path) -> Iterator[Path]:
    """Yield a folder from which `engine` loads `checkpoint`, and remove it afterwards.

    Args:
        checkpoint: what `engine.save_checkpoint` wrote for a tag.
        folder: where the converted checkpoint goes, on storage that all workers share.
    """
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        _convert(checkpoint, folder / checkpoint.name, engine.zero_optimization_stage())
    dist.barrier()
    options = [_options(group) for group in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True  # it has no other switch after its start
    try:
        yield folder
    finally:
        engine._config.load_universal_checkpoint = False
    # Under ZeRO-3 DeepSpeed gives all groups the options of the first one, and one count of steps,
    # which each of them would then raise.
    rates = engine.lr_scheduler.get_last_lr()
    for group, own, rate in zip(engine.optimizer.param_groups, options, rates, strict=True):
        group.update(own | {"lr": rate})
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = deepcopy(state["step"])
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _convert(checkpoint: Path, target: Path, stage: int) -> None:
    from deepspeed.checkpoint import ds_to_universal

    with redirect_stdout(StringIO()):
        ds_to_universal.main(
            Namespace(
                input_folder=str(checkpoint),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                # Stages 1 and 2 ask for it, and it holds nothing without tensor parallelism.
                inject_missing_state=stage < 3,
            )
        )
