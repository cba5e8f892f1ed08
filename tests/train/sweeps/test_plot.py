"""The picture of a sweep."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from llamahome.config import TrainRoot
from llamahome.models import ModelManager
from tests.train.runs.saved import CURVE, save_run
from tests.train.sweeps.sweeping import job
from train.runs.folder import RunsError
from train.sweeps.jobs import Sweep, build_sweep
from train.sweeps.plot import draw_sweep, swept_keys


def sweep_over(root: TrainRoot, manager: ModelManager, *overrides: list[str]) -> Sweep:
    jobs = [job(root, 1e-3) for _ in overrides]
    for each, own in zip(jobs, overrides, strict=True):
        each.overrides = ["data=chats", *own]
    return build_sweep(jobs, manager)


def test_curves_and_one_picture_for_each_swept_key(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    points = [["trainer.seed=0", "policy=h2o"], ["trainer.seed=1", "policy=window"]]
    sweep = sweep_over(root, manager, *points)
    assert swept_keys(sweep) == ["trainer.seed", "policy"]
    with pytest.raises(RunsError, match="no run of tiny has a value of eval_loss yet"):
        draw_sweep(sweep, "eval_loss")
    save_run(tmp_path / "runs", "tiny-01")
    save_run(tmp_path / "runs", "tiny-02", CURVE[:1], finished=False)
    sweep.directory.mkdir()
    file = draw_sweep(sweep, "eval_loss")
    assert file == tmp_path / "runs" / "tiny" / "sweep.png"
    height, width = matplotlib.image.imread(file).shape[:2]
    assert width > 3 * height  # curves, and two more side by side


def test_a_sweep_of_one_has_curves_alone(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    sweep = sweep_over(root, manager, ["trainer.seed=0"])
    save_run(tmp_path / "runs", "tiny-01")
    sweep.directory.mkdir()
    height, width = matplotlib.image.imread(draw_sweep(sweep, "loss")).shape[:2]
    assert width < 2 * height
