"""torch.compile changes no loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamahome.config import TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.reference import training_losses
from tests.train.test_run import changed
from tests.train.test_worker import start, values
from train.compiling import compile_around_attention

# Dynamo looks at `.grad` of every tensor that it traces, and at DeepSpeed's functions as objects.
pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_compiled_losses_are_those_of_plain_pytorch(
    root: TrainRoot, model_dir: Path, tmp_path: Path, stage: int
) -> None:
    """Dynamo's graphs run without a compiler here, which would take minutes."""
    root = changed(root, "trainer", num_workers=1, steps=3, warmup_steps=1)
    root = changed(root, "deepspeed", zero_stage=stage)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with one_worker(tmp_path / "meet"):
        training = start(root, tmp_path / "run")
        compile_around_attention(training.engine, backend="eager")
        for _ in range(3):
            training.step()
    torch._dynamo.reset()
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 50
    losses = list(values(tmp_path / "run", "loss").values())
    assert losses == pytest.approx(training_losses(root, model_dir), abs=1e-4)
