"""One worker's part of a run, in a world of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from llamahome.config import DeepSpeedConfig, TrainRoot
from tests.train.engine import QUIET, one_worker
from tests.train.test_run import changed
from train import metrics
from train.checkpoint import checkpoints, steps_in
from train.stopping import REQUEST

pytestmark = QUIET


@pytest.fixture(autouse=True)
def world(tmp_path: Path) -> Iterator[None]:
    """A world of one worker."""
    with one_worker(tmp_path / "meet"):
        yield


@pytest.fixture
def alone(root: TrainRoot) -> TrainRoot:
    return changed(root, "trainer", num_workers=1)


def start(root: TrainRoot, run_dir: Path) -> Any:
    """Make the worker's part of a run, from the newest checkpoint in `run_dir` on."""
    from train.deepspeed_config import deepspeed_config
    from train.model import prepare_model
    from train.records import build_datasets
    from train.worker import Training, start_engine

    run_dir.mkdir(exist_ok=True)
    settings = deepspeed_config(root.deepspeed, root.trainer)
    model, policy, tokenizer = prepare_model(root, settings, root.model)
    engine = start_engine(model, root.trainer, settings)
    data = build_datasets(root.data, tokenizer, root.trainer.seed)
    return Training(root, run_dir, engine, policy, data, tokenizer.pad_token_id)


def values(run_dir: Path, name: str) -> dict[int, float]:
    return metrics.series(metrics.read(run_dir), name)


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(4, 2, True), (3, 2, False), (9, 0, True), (8, 0, False), (9, 2, True)],
)
def test_the_last_step_is_always_due(step: int, every: int, due: bool) -> None:
    from train.worker import is_due  # DeepSpeed looks for its device when it is imported

    assert is_due(step, every, last=9) is due


@pytest.mark.parametrize("asked", [{}, {"neftune_alpha": 5.0, "batch_tokens": 400}])
def test_a_run_that_is_asked_to_stop_goes_on_exactly(
    alone: TrainRoot, tmp_path: Path, asked: dict[str, Any]
) -> None:
    alone = changed(alone, "trainer", **asked)
    whole = start(alone, tmp_path / "whole")
    assert whole.until_done()

    stopped = start(alone, tmp_path / "stopped")
    stopped.step()
    (tmp_path / "stopped" / REQUEST).touch()
    assert not stopped.until_done()
    assert [steps_in(path) for path in checkpoints(tmp_path / "stopped")] == [1]
    (tmp_path / "stopped" / REQUEST).unlink()
    assert start(alone, tmp_path / "stopped").until_done()
    for name in ("loss", "grad_norm", "tokens", "learning_rate"):
        assert values(tmp_path / "stopped", name) == values(tmp_path / "whole", name)


def test_early_stopping_ends_with_the_lowest_held_out_loss(
    alone: TrainRoot, tmp_path: Path
) -> None:
    """The learning rate is far too high, so that the loss falls first and rises then."""
    asked = {"steps": 60, "eval_every": 1, "learning_rate": 0.1, "warmup_steps": 50}
    root = changed(alone, "trainer", early_stopping_patience=3, checkpoint_every=0, **asked)
    training = start(root, tmp_path / "run")
    assert training.until_done()
    losses = {
        record["step"]: record["eval_loss"]
        for record in metrics.read(tmp_path / "run")
        if record.get("eval_loss") and record["step"]
    }
    best = min(losses, key=losses.__getitem__)
    assert 1 < best == training.progress.step
    assert max(losses) == best + 3 < 60
    last = list(values(tmp_path / "run", "eval_loss").values())[-1]
    assert last == losses[best]  # measured again, with the best weights
    assert best in [steps_in(path) for path in checkpoints(tmp_path / "run")]
    # Given again, the run has nothing left to do.
    again = start(replace(root), tmp_path / "run")
    assert again.until_done()
    assert again.progress.step == best


@pytest.mark.parametrize("stage", [2, 3])
def test_norms_do_not_decay(alone: TrainRoot, tmp_path: Path, stage: int) -> None:
    zero = DeepSpeedConfig(zero_stage=stage)
    root = changed(replace(alone, deepspeed=zero), "trainer", weight_decay=0.5)
    groups = start(root, tmp_path / "run").engine.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.0, 0.5, 1.0, 0.75, 0.25]),
        ("linear", [0.0, 0.5, 1.0, 2 / 3, 1 / 3]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    alone: TrainRoot, tmp_path: Path, schedule: str, expected: list[float]
) -> None:
    asked = {"steps": 5, "warmup_steps": 2, "learning_rate": 1e-3, "schedule": schedule}
    training = start(changed(alone, "trainer", **asked), tmp_path / "run")
    assert training.until_done()
    rates = values(tmp_path / "run", "learning_rate")
    assert list(rates.values()) == pytest.approx([1e-3 * share for share in expected])


def test_a_worker_alone_sums_no_gradients_and_updates_weights_in_one_pass(
    alone: TrainRoot, tmp_path: Path
) -> None:
    training = start(alone, tmp_path / "run")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        training.step()
    events = seen.events()
    sums = [event.name for event in events if event.name.startswith("c10d::allreduce")]
    assert len(sums) == 2  # counts and losses
    updates = [event.name for event in events if event.name == "aten::_fused_adamw_"]
    assert len(updates) == len(training.engine.optimizer.param_groups)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_of_an_unfused_run_goes_on(
    alone: TrainRoot, tmp_path: Path, stage: int
) -> None:
    """Runs from before AdamW was fused."""
    root = replace(alone, deepspeed=DeepSpeedConfig(zero_stage=stage))
    whole, old = (start(root, tmp_path / name) for name in ("whole", "old"))
    inner = getattr(old.engine.optimizer, "optimizer", old.engine.optimizer)
    for group in inner.param_groups:
        group["fused"] = None
    for training in (whole, old):
        training.step()
        training.step()
        training.save()
    again = start(root, tmp_path / "old")
    assert again.progress.step == 2
    again.step()
    whole.step()
    for name in ("loss", "grad_norm"):
        own = list(values(tmp_path / "whole", name).values())
        assert list(values(tmp_path / "old", name).values()) == pytest.approx(own, rel=1e-5)
