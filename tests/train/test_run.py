"""A run's folder: its name, resuming it, and refusals before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from llamahome.config import ConfigError, PolicyConfig, TrainRoot
from llamahome.data import DataError
from llamahome.models import ModelManager, ModelNotFoundError, write_policy
from train.run import dense_stage, prepare_run, second_stage


def changed(root: TrainRoot, group: str, **values: Any) -> TrainRoot:
    return replace(root, **{group: replace(getattr(root, group), **values)})


def test_runs_without_a_name_get_names_of_their_own(root: TrainRoot, manager: ModelManager) -> None:
    unnamed = changed(root, "trainer", run_name=None, output_dir=None)
    runs = [prepare_run(unnamed, manager) for _ in range(3)]
    assert len({run.name for run in runs}) == 3
    assert all(run.name.startswith("tiny-h2o-") for run in runs)
    assert all(run.directory.parent == manager.runs_dir for run in runs)


def test_the_run_file_says_what_was_started(root: TrainRoot, manager: ModelManager) -> None:
    run = prepare_run(root, manager)
    started = json.loads((run.directory / "run.json").read_text())
    assert started["policy"]["budget"] == 24
    assert started["trainer"]["learning_rate"] == root.trainer.learning_rate


def test_relative_paths_are_looked_up_for_workers_elsewhere(
    root: TrainRoot, manager: ModelManager, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_dir.parent)
    run = prepare_run(changed(root, "model", name=model_dir.name), manager)
    assert run.root.model.name == str(model_dir)
    assert Path(run.root.data.train_file).is_absolute()


def test_a_run_resumes_with_more_steps(root: TrainRoot, manager: ModelManager) -> None:
    first = prepare_run(root, manager)
    again = prepare_run(changed(root, "trainer", steps=20), manager)
    assert again.directory == first.directory
    assert json.loads((again.directory / "run.json").read_text())["trainer"]["steps"] == 20


@pytest.mark.parametrize(
    ("group", "values", "named"),
    [
        ("policy", {"budget": 32}, r"policy\.budget=32 \(was 24\)"),
        ("data", {"context_length": 64}, r"data\.context_length=64 \(was 160\)"),
        ("trainer", {"max_grad_norm": 2.0}, r"trainer\.max_grad_norm=2\.0 \(was 1\.0\)"),
        ("trainer", {"warmup_steps": 1}, r"trainer\.warmup_steps=1 \(was 2\)"),
        ("deepspeed", {"zero_stage": 3}, r"deepspeed\.zero_stage=3 \(was 2\)"),
    ],
)
def test_a_name_is_refused_for_another_config(
    root: TrainRoot, manager: ModelManager, group: str, values: dict[str, Any], named: str
) -> None:
    first = prepare_run(root, manager)
    before = (first.directory / "run.json").read_text()
    with pytest.raises(ConfigError, match=named):
        prepare_run(changed(root, group, **values), manager)
    assert (first.directory / "run.json").read_text() == before


def test_a_carried_policy_is_taken_from_the_model(
    root: TrainRoot, manager: ModelManager, model_dir: Path, tmp_path: Path
) -> None:
    carrying = tmp_path / "carrying"
    carrying.mkdir()
    for file in model_dir.iterdir():
        (carrying / file.name).symlink_to(file)
    config = AutoConfig.from_pretrained(model_dir)
    write_policy(config, PolicyConfig(name="window", budget=20, recent=8, interval=8))
    (carrying / "config.json").unlink()
    config.save_pretrained(carrying)

    carried = replace(root, policy=PolicyConfig(name="carried", budget=None))
    run = prepare_run(changed(carried, "model", name=str(carrying)), manager)
    assert (run.root.policy.name, run.root.policy.budget) == ("window", 20)
    # The model itself carries none.
    for number, budget in enumerate((None, 200)):
        asked = replace(root, policy=PolicyConfig(name="carried", budget=budget))
        run = prepare_run(changed(asked, "trainer", run_name=f"other-{number}"), manager)
        assert run.root.policy == PolicyConfig(budget=budget or PolicyConfig().budget)


@pytest.mark.parametrize(
    ("group", "values", "error", "named"),
    [
        ("model", {"dtype": "bfloat16"}, ConfigError, "trainer.precision"),
        ("model", {"name": "no-such-model"}, ModelNotFoundError, "no-such-model"),
        ("data", {"context_length": 512}, ConfigError, "exceeds the 256 tokens"),
        ("data", {"train_file": "no-such.jsonl"}, DataError, "no-such.jsonl"),
        ("data", {"limit": 3}, DataError, "workers"),
        ("trainer", {"batch_size": 64}, DataError, "trainer.batch_size"),
    ],
)
def test_what_cannot_train_is_refused_and_leaves_no_folder(
    root: TrainRoot,
    manager: ModelManager,
    group: str,
    values: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        prepare_run(changed(root, group, **values), manager)
    assert not Path(str(root.trainer.output_dir)).exists()


def test_two_stages_are_two_runs_and_the_second_starts_from_the_first(
    root: TrainRoot, manager: ModelManager
) -> None:
    recipe = {"dense_steps": 5, "kl_weight": 1.0, "anneal_steps": 2, "budget_jitter": 0.5}
    asked = changed(root, "trainer", method="lora", export="adapter", dense_share=0.1, **recipe)
    run = prepare_run(asked, manager)
    dense = dense_stage(run)
    assert dense.directory == run.directory.with_name("tiny-dense")
    assert dense.root.policy == PolicyConfig.dense()
    plain = replace(root.trainer, run_name="tiny-dense", method="lora", steps=5)
    assert dense.root.trainer == plain
    second = second_stage(run, dense)
    assert second.root.model.name == str(dense.model_dir)
    assert (second.directory, second.policy_model) == (run.directory, run.root.model)
    assert second.root.trainer == run.root.trainer
    # Named again, both are resumed.
    assert dense_stage(prepare_run(asked, manager)) == dense
    with pytest.raises(ConfigError, match=r"trainer\.dense_steps=6 \(was 5\)"):
        prepare_run(changed(asked, "trainer", dense_steps=6), manager)


def test_a_dense_stage_is_refused_the_name_of_another_run(
    root: TrainRoot, manager: ModelManager
) -> None:
    prepare_run(changed(root, "trainer", run_name="tiny-dense"), manager)
    with pytest.raises(ConfigError, match=r"trainer\.run_name='tiny-dense' exists"):
        dense_stage(prepare_run(changed(root, "trainer", dense_steps=5), manager))
