"""A DeepSpeed engine in the test's own process: a world of one worker on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ray.train.v2._internal.execution import train_fn_utils

from llamahome.config import TrainRoot

os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Libraries' own old names.
QUIET = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.[a-z_]*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # PEFT
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@contextmanager
def one_worker(meet: Path) -> Iterator[None]:
    """Make this process the only worker of a run."""
    with worker(meet, rank=0, workers=1):
        yield


@contextmanager
def worker(meet: Path, rank: int, workers: int) -> Iterator[None]:
    """Make this process one worker of a run; they meet at the file `meet`."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for a minute
    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=workers)
    before = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers))
    try:
        deepspeed.init_distributed("gloo")
        _number_from_zero()
        # Answers questions to Ray Train as its local mode does.
        ray_train = train_fn_utils.LocalTrainFnUtils("test", world_size=workers, world_rank=rank)
        train_fn_utils.set_train_fn_utils(ray_train)
        yield
    finally:
        train_fn_utils.set_train_fn_utils(None)
        dist.destroy_process_group()
        deepspeed.comm.comm.cdb = None  # its caches hold groups that are gone
        importlib.reload(deepspeed.utils.groups)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _number_from_zero() -> None:
    """Forget how many models this process made: ZeRO-3 compares numbers between workers."""
    from deepspeed.runtime.zero import Init
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0


def engine_for(root: TrainRoot) -> tuple[Any, Any]:
    """Load the model of `root` as a worker does; return the engine and the tokenizer."""
    from train.deepspeed_config import deepspeed_config
    from train.model import prepare_model
    from train.worker import start_engine

    settings = deepspeed_config(root.deepspeed, root.trainer)
    model, _, tokenizer = prepare_model(root, settings, root.model)
    return start_engine(model, root.trainer, settings), tokenizer
