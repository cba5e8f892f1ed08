"""A policy with weights, from training to the folder that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from llamahome.attention import HybridAttention
from llamahome.config import DeepSpeedConfig, LoraConfig, ModelConfig, PolicyConfig, TrainRoot
from llamahome.models import LoadedModel, load_model
from tests.train.engine import one_worker
from train.data import batches
from train.deepspeed_config import deepspeed_config
from train.export import export_model
from train.model import bare_model, prepare_model
from train.objectives import Objective, cross_entropy
from train.records import build_datasets
from train.step import train_step
from train.worker import start_engine

# DeepSpeed runs in this process: torch warns of its own modules, and PEFT of a renamed base.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The PEFT config:UserWarning"
)

CARRIED = replace(TrainRoot().policy, name="carried", budget=None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of one worker for the whole module."""
    with one_worker(tmp_path_factory.mktemp("group") / "meet"):
        yield


def _train(
    root: TrainRoot, run_dir: Path, steps: int, policy_model: ModelConfig | None = None
) -> tuple[list[float], LoadedModel]:
    """Train for some steps and export; return the losses and the exported model."""
    settings = deepspeed_config(root.deepspeed, root.trainer)
    torch.manual_seed(0)
    model, policy, tokenizer = prepare_model(root, settings, policy_model or root.model)
    engine = start_engine(model, root.trainer, settings)
    attention = HybridAttention(policy, bare_model(model))
    rows = build_datasets(root.data, tokenizer, root.trainer.seed).train
    share = {"rank": 0, "world_size": 1, "pad_id": 0}
    stream = batches(rows, root.data, root.trainer, start_step=0, **share)
    losses = [
        train_step(engine, [batch], attention, Objective(cross_entropy))[0]["loss"]
        for batch in islice(stream, steps)
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    export_model(engine, tokenizer, root, run_dir, rows[0]["input_ids"])
    return losses, load_model(ModelConfig(name=str(run_dir / "model")))


def _weight(loaded: LoadedModel) -> torch.Tensor:
    assert loaded.policy is not None
    assert loaded.policy.weights is not None
    return loaded.policy.weights.state_dict()["weight"]


@pytest.mark.parametrize("kind", ["full", "merged", "adapter", "zero3"])
@pytest.mark.usefixtures("alone", "linear_policy")
def test_weights_train_with_the_model_and_travel_with_it(
    root: TrainRoot, tmp_path: Path, kind: str
) -> None:
    lora = kind in ("merged", "adapter")
    root = replace(
        root,
        policy=replace(root.policy, name="linear"),
        deepspeed=DeepSpeedConfig(zero_stage=3 if kind == "zero3" else 2),
        trainer=replace(
            root.trainer,
            method="lora" if lora else "full",
            export="adapter" if kind == "adapter" else "merged",
            lora=LoraConfig(r=2),
            warmup_steps=0,
            num_workers=1,
        ),
    )
    losses, loaded = _train(root, tmp_path / "run", steps=6)
    assert losses[-1] < losses[0]
    first = _weight(loaded)
    assert first.shape == (2, 2, 16)
    assert bool((first.abs().sum(dim=-1) > 0).all())  # every layer and head has learned something
    # A second run goes on from these weights, under another budget.
    again = replace(root, model=replace(root.model, name=str(loaded.path)))
    again = replace(again, policy=replace(again.policy, budget=32))
    _, continued = _train(again, tmp_path / "again", steps=1)
    moved = (_weight(continued) - first).abs().max()
    assert 0 < float(moved) < float(first.abs().max())
    assert continued.policy_for(CARRIED).config.budget == 32


def _linear(root: TrainRoot, **trainer: Any) -> TrainRoot:
    small = {"warmup_steps": 0, "num_workers": 1, **trainer}
    return replace(
        root,
        policy=replace(root.policy, name="linear"),
        trainer=replace(root.trainer, **small),
    )


@pytest.mark.usefixtures("alone", "linear_policy")
def test_weights_go_round_a_stage_without_eviction(root: TrainRoot, tmp_path: Path) -> None:
    root = _linear(root)
    _, trained = _train(root, tmp_path / "first", steps=2)
    carrying = replace(root, model=ModelConfig(name=str(trained.path)))
    _, dense = _train(replace(carrying, policy=PolicyConfig.dense()), tmp_path / "dense", steps=1)
    assert dense.policy is not None
    assert dense.policy.weights is None
    second = replace(root, model=ModelConfig(name=str(dense.path)))
    _, last = _train(second, tmp_path / "second", steps=0, policy_model=carrying.model)
    assert torch.equal(_weight(last), _weight(trained))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.usefixtures("alone", "linear_policy")
def test_weights_have_a_learning_rate_of_their_own(
    root: TrainRoot, tmp_path: Path, stage: int
) -> None:
    root = replace(root, deepspeed=DeepSpeedConfig(zero_stage=stage))
    losses, slow = _train(_linear(root, policy_learning_rate=1e-9), tmp_path / "slow", steps=6)
    assert losses[-1] < losses[0]  # the model learns at trainer.learning_rate
    _, fast = _train(_linear(root, policy_learning_rate=0.1), tmp_path / "fast", steps=1)
    assert 0 < float(_weight(slow).abs().max()) < 1e-7
    # Adam's first step is as long as the learning rate.
    assert float(_weight(fast).abs().max()) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.usefixtures("alone", "linear_policy")
def test_a_checkpoint_holds_the_weights(root: TrainRoot, tmp_path: Path, method: str) -> None:
    root, frozen = _linear(root, method=method), method == "lora"
    settings = deepspeed_config(root.deepspeed, root.trainer)
    found: list[torch.Tensor] = []
    for filled in (1.0, 2.0):
        model, policy, _ = prepare_model(root, settings, root.model)
        assert policy.weights is not None
        (weight,) = policy.weights.parameters()
        torch.nn.init.constant_(weight, filled)
        engine = start_engine(model, root.trainer, settings)
        if not found:
            engine.save_checkpoint(str(tmp_path), tag="x", exclude_frozen_parameters=frozen)
        else:
            engine.load_checkpoint(str(tmp_path), tag="x", load_module_strict=not frozen)
        found.append(weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.usefixtures("alone")
def test_a_rule_leaves_no_weights_behind(root: TrainRoot, tmp_path: Path) -> None:
    root = replace(root, trainer=replace(root.trainer, num_workers=1))
    _, loaded = _train(root, tmp_path / "run", steps=1)
    assert not (loaded.path / "policy.safetensors").exists()
    assert loaded.policy_for(CARRIED).config == root.policy
