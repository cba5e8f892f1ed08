"""Curves of a run: plain PyTorch's for each accumulation, and its own again from every step on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import set_seed

from llamahome.config import DeepSpeedConfig, LoraConfig, TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.reference import training_losses
from tests.train.test_run import changed
from tests.train.test_worker import start, values
from train.checkpoint import path_of

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is depr:FutureWarning"),
]
STEPS = 3
COLUMNS = ("loss", "grad_norm", "learning_rate", "tokens", "eval_loss")
LORA = {"method": "lora", "lora": LoraConfig(r=4)}
DROPOUT = {"method": "lora", "lora": LoraConfig(r=4, dropout=0.2)}
# Stage, batching, and what else differs from full fine-tuning.
WAYS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "zero0": (0, "padding", {}),
    "zero1": (1, "padding", {}),
    "zero2": (2, "packing", {}),
    "zero3": (3, "packing", {}),
    "lora": (2, "packing", LORA),
    "lora-zero3": (3, "padding", LORA),
}
NOISE = {
    "dropout": (2, "packing", DROPOUT),
    "noise": (3, "padding", {"neftune_alpha": 5.0, "accumulation": 2}),
    "mixed": (2, "padding", {"precision": "mixed", "gradient_checkpointing": True}),
    "bf16": (1, "packing", {"precision": "bf16"}),
}


@pytest.fixture(autouse=True)
def world(tmp_path: Path) -> Iterator[None]:
    """A world of one worker."""
    with one_worker(tmp_path / "meet"):
        yield


def config(root: TrainRoot, way: tuple[int, str, dict[str, Any]], **asked: Any) -> TrainRoot:
    stage, batching, own = way
    root = replace(
        root,
        deepspeed=DeepSpeedConfig(zero_stage=stage),
        data=replace(root.data, batching=batching, context_length=192),
        policy=replace(root.policy, budget=40, recent=24, interval=24),
    )
    shared = {"num_workers": 1, "steps": STEPS, "warmup_steps": 0, "batch_size": 1}
    asked = shared | {"weight_decay": 0.1, "eval_batches": 1} | own | asked
    return changed(root, "trainer", **asked)


@pytest.mark.parametrize(
    ("way", "accumulation"),
    [("zero0", 4), ("zero1", 1), ("zero2", 8), ("zero3", 4), ("lora", 8), ("lora-zero3", 1)],
)
def test_a_step_is_the_mean_over_all_its_labels(
    root: TrainRoot, model_dir: Path, tmp_path: Path, way: str, accumulation: int
) -> None:
    """Micro-batches differ in their labels: the mean of their means would be another curve."""
    asked = config(root, WAYS[way], accumulation=accumulation, checkpoint_every=0)
    set_seed(asked.trainer.seed)  # as a worker's process does, so that adapters start equal
    assert start(asked, tmp_path / "run").until_done()
    own = list(values(tmp_path / "run", "loss").values())
    assert own == pytest.approx(training_losses(asked, model_dir), abs=1e-5)


@pytest.mark.parametrize("way", [*WAYS, *NOISE])
def test_a_run_goes_on_exactly_after_every_step(root: TrainRoot, tmp_path: Path, way: str) -> None:
    asked = config(
        root, {**WAYS, **NOISE}[way], checkpoint_every=1, keep_checkpoints=STEPS, eval_every=1
    )
    whole = tmp_path / "whole"
    assert start(asked, whole).until_done()
    for step in range(1, STEPS):
        run_dir = tmp_path / f"from-{step}"
        shutil.copytree(path_of(whole, step), path_of(run_dir, step))
        resumed = start(asked, run_dir)
        assert resumed.progress.step == step
        assert resumed.until_done()
        for name in COLUMNS:
            expected = {at: value for at, value in values(whole, name).items() if at > step}
            assert values(run_dir, name) == expected, (name, step)
