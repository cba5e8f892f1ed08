"""A run of two workers goes on with one, and with two again, on the curve of plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamahome.config import TrainRoot
from tests.train.engine import QUIET
from tests.train.reference import training_losses
from tests.train.test_run import changed
from tests.train.test_worker import values
from tests.train.two_workers import Part, train_parts

pytestmark = QUIET
CASES = [(1, "full"), (2, "lora"), (3, "full")]


def case(root: TrainRoot, stage: int, method: str) -> TrainRoot:
    root = changed(root, "trainer", method=method, steps=6, weight_decay=0.3)
    return changed(root, "deepspeed", zero_stage=stage)


def test_the_curve_does_not_depend_on_the_number_of_workers(
    root: TrainRoot, model_dir: Path, tmp_path: Path
) -> None:
    parts, expected = [], {}
    for stage, method in CASES:
        two = case(root, stage, method)
        one = changed(two, "trainer", num_workers=1, accumulation=2, eval_batches=16)
        run_dir = tmp_path / f"{stage}-{method}"
        parts += [Part(two, run_dir, 2), Part(one, run_dir, 4), Part(two, run_dir, 6)]
        expected[run_dir] = training_losses(two, model_dir)
    train_parts(parts, tmp_path / "meet")
    for run_dir, losses in expected.items():
        assert list(values(run_dir, "loss").values()) == pytest.approx(losses, abs=1e-4), run_dir
        assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.suffix] == []
