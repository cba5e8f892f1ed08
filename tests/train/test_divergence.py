"""A run whose numbers are not finite stops, and says which checkpoint is the last good one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import DeepSpeedConfig, PolicyConfig, TrainRoot
from tests.train.engine import QUIET, engine_for, one_worker
from train.checkpoint import checkpoints
from train.divergence import DivergenceGuard
from train.errors import DivergedError
from train.objectives import Objective, cross_entropy
from train.step import train_step

pytestmark = QUIET
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run with checkpoints of steps 3, 6 and 9, in a world of one."""
    for step in (3, 6, 9):
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    with one_worker(tmp_path / "meet"):
        yield tmp_path / "run"


def steps_left(run_dir: Path) -> list[int]:
    return [int(path.name[-6:]) for path in checkpoints(run_dir)]


@pytest.mark.parametrize("loss", [NAN, INF])
def test_a_loss_that_is_no_number_stops_at_once(run_dir: Path, loss: float) -> None:
    """The checkpoint of step 9 leads to it: its weights are what step 10 computed with."""
    with pytest.raises(DivergedError) as stopped:
        DivergenceGuard(run_dir, 0).after_step(10, loss, 0)
    said = str(stopped.value)
    assert f"the loss of step 10 is {loss}; lower trainer.learning_rate" in said
    assert "trainer.run_name=run trainer.steps=6 exports the last good checkpoint" in said
    assert said.endswith("step-000006")
    assert steps_left(run_dir) == [6, 3]
    assert (run_dir / "checkpoints" / "step-000009.diverged").is_dir()


def test_a_held_out_loss_that_is_no_number_stops_too(run_dir: Path) -> None:
    guard = DivergenceGuard(run_dir, 0)
    guard.after_evaluation(9, 1.5)
    with pytest.raises(DivergedError, match="held-out loss after step 9 is nan"):
        guard.after_evaluation(9, NAN)
    assert steps_left(run_dir) == [6, 3]


def test_steps_left_out_in_a_row_stop(run_dir: Path) -> None:
    guard = DivergenceGuard(run_dir, skipped=4)
    assert guard.after_step(5, 1.0, 4) is None
    assert guard.after_step(6, 1.0, 5) == (
        "step 6: the gradient is not finite, so the weights stay as they were"
    )
    assert guard.after_step(7, 1.0, 5) is None  # an outlier
    for step in (8, 9):
        assert guard.after_step(step, 1.0, step - 2) is not None
    with pytest.raises(DivergedError, match="gradients of 3 steps up to 10 are not finite"):
        guard.after_step(10, 1.0, 8)
    assert steps_left(run_dir) == [6, 3]


def test_a_first_step_has_no_checkpoint_to_name(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(DivergedError, match="no checkpoint before that is good"):
        DivergenceGuard(tmp_path / "other", 0).after_step(1, NAN, 0)


def overflowing(engine, batch, attention):
    """Compute a finite loss whose gradient is not."""
    loss = cross_entropy(engine, batch, attention)["loss"]
    root = (loss - loss.detach()).clamp(min=0).sqrt()
    return {"loss": loss + root}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_counts_the_steps_that_it_leaves_out(
    root: TrainRoot, run_dir: Path, stage: int, precision: str
) -> None:
    trainer = replace(root.trainer, precision=precision)
    root = replace(root, trainer=trainer, deepspeed=DeepSpeedConfig(zero_stage=stage))
    engine, _ = engine_for(root)
    ids = torch.arange(40, 60)[None]
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    dense = HybridAttention(build_policy(PolicyConfig.dense()))
    guard = DivergenceGuard(run_dir, engine.skipped_steps)
    losses, _ = train_step(engine, [batch], dense, Objective(cross_entropy))
    assert guard.after_step(1, losses["loss"], engine.skipped_steps) is None
    losses, _ = train_step(engine, [batch], dense, Objective(overflowing))
    assert guard.after_step(2, losses["loss"], engine.skipped_steps) is not None
