"""A notice that a node will go: the run saves at once, trains on, and resumes from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.train import PreemptionInfo
from ray.train.v2._internal.execution import train_fn_utils

from llamahome.config import TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.test_run import changed
from tests.train.test_worker import start, values
from train import metrics, preemption
from train.checkpoint import checkpoints, steps_in
from train.preemption import PreemptionNotices, spelled

pytestmark = QUIET
CPU = torch.device("cpu")


class Announced(train_fn_utils.LocalTrainFnUtils):
    """Ray Train in a worker whose nodes are announced in `nodes`."""

    def __init__(self) -> None:
        super().__init__("test")
        self.nodes: dict[str, list[int]] = {}
        self.asked = 0

    def get_preemption_info(self) -> PreemptionInfo | None:
        self.asked += 1
        deadline = int(1000 * time.time()) + 120_500
        return PreemptionInfo(deadline, dict(self.nodes)) if self.nodes else None


@pytest.fixture
def ray_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announced]:
    with one_worker(tmp_path / "meet"):
        monkeypatch.setattr(preemption, "LOOK_S", 0.0)
        announced = Announced()
        train_fn_utils.set_train_fn_utils(announced)
        yield announced


def saved(run_dir: Path) -> list[int]:
    return [steps_in(path) for path in checkpoints(run_dir)]


def test_a_notice_saves_once_and_training_goes_on(
    root: TrainRoot, tmp_path: Path, ray_train: Announced
) -> None:
    asked = {"num_workers": 1, "steps": 5, "checkpoint_every": 0, "keep_checkpoints": 9}
    alone, run_dir = changed(root, "trainer", **asked), tmp_path / "run"
    training = start(alone, run_dir)
    training.step()
    training.step()
    ray_train.nodes = {"a1b2c3d4e5": [0]}
    assert training.until_done()
    assert saved(run_dir) == [5, 2]
    whole = values(run_dir, "loss")
    (warning,) = [r["warning"] for r in metrics.read(run_dir) if "taken" in r.get("warning", "")]
    assert "node a1b2c3d4 (worker 0) will be taken away" in warning
    assert "in 120 s; saved after step 2" in warning

    # The node goes before the end: the next workers start from that checkpoint.
    checkpoints(run_dir)[0].rename(tmp_path / "never-written")
    ray_train.nodes = {}
    resumed = start(alone, run_dir)
    assert resumed.progress.step == 2
    assert resumed.until_done()
    assert values(run_dir, "loss") == whole


def test_each_node_is_announced_once(ray_train: Announced) -> None:
    notices = PreemptionNotices()
    assert notices.new(CPU) is None
    ray_train.nodes = {"first": [0]}
    assert notices.new(CPU)
    assert notices.new(CPU) is None
    ray_train.nodes = {"first": [0], "second": [1]}
    assert notices.new(CPU)
    assert notices.new(CPU) is None


def test_ray_is_not_asked_at_every_step(
    ray_train: Announced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption, "LOOK_S", 3600.0)
    notices = PreemptionNotices()
    for _ in range(3):
        notices.new(CPU)
    assert ray_train.asked == 1


def test_a_notice_without_a_deadline() -> None:
    notice = PreemptionInfo(None, {"b" * 56: [2, 0], "a" * 56: [1]})
    assert spelled(notice) == (
        "Ray: nodes aaaaaaaa, bbbbbbbb (workers 0, 1, 2) will be taken away soon"
    )
