"""Every key of a run is either fixed or free when the run is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamahome.config import ConfigError, TrainRoot
from llamahome.models import ModelManager
from train.run import prepare_run
from train.runs.folder import RUN_FILE

# A new key must be added to one of the two.
FIXED = {
    "model": "name revision dtype",
    "policy": "name budget sink recent interval decay normalize group window seed layers pattern "
    "positions",
    "data": "format train_file mix mix_times eval_file eval_fraction context_length batching "
    "overlong train_on max_bad_records limit",
    "trainer": "method dense_steps batch_size batch_tokens accumulation learning_rate "
    "policy_learning_rate warmup_steps schedule weight_decay objective beta kl_weight "
    "label_smoothing neftune_alpha anneal_steps budget_jitter "
    "dense_share max_grad_norm precision seed num_workers eval_batches",
    "trainer.lora": "r alpha dropout target_modules train_norms rslora dora",
    "deepspeed": "zero_stage",
}
FREE = {
    "trainer": "run_name output_dir export steps gradient_checkpointing cpus_per_worker use_gpu "
    "eval_every checkpoint_every keep_checkpoints early_stopping_patience max_failures "
    "sample_prompts sample_held_out sample_tokens",
    "deepspeed": "offload_optimizer offload_parameters bucket_size",
    "tracking": "wandb project entity tensorboard mlflow",
    "search": "samples space scheduler metric grace reduction seed",
    "cluster": "address num_cpus temp_dir dashboard",
}


def spelled(table: dict[str, str]) -> list[str]:
    return [f"{section}.{key}" for section, keys in table.items() for key in keys.split()]


def keys(config: dict[str, Any], prefix: str = "") -> set[str]:
    """Flatten sections; a dict without entries is a value."""
    found: set[str] = set()
    for name, value in config.items():
        found |= (
            keys(value, f"{prefix}{name}.")
            if value and isinstance(value, dict)
            else {prefix + name}
        )
    return found


def resume_after(root: TrainRoot, manager: ModelManager, key: str) -> None:
    """Resume a run that was started with another value of `key`."""
    file = prepare_run(root, manager).directory / RUN_FILE
    started = json.loads(file.read_text())
    *sections, name = key.split(".")
    section = started
    for part in sections:
        section = section[part]
    section[name] = "another"
    file.write_text(json.dumps(started))
    prepare_run(root, manager)


@pytest.fixture
def lora(root: TrainRoot) -> TrainRoot:
    """A run that reads every key of its config."""
    return replace(root, trainer=replace(root.trainer, method="lora"))


def test_every_key_is_decided() -> None:
    assert sorted(spelled(FIXED) + spelled(FREE)) == sorted(keys(asdict(TrainRoot())))


@pytest.mark.parametrize("key", spelled(FIXED))
def test_a_fixed_key_is_refused_by_name(lora: TrainRoot, manager: ModelManager, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=.* \(was 'another'\)\. Choose a new"):
        resume_after(lora, manager, key)


@pytest.mark.parametrize("key", spelled(FREE))
def test_a_free_key_may_change(lora: TrainRoot, manager: ModelManager, key: str) -> None:
    resume_after(lora, manager, key)


def test_a_run_without_adapters_may_change_them(root: TrainRoot, manager: ModelManager) -> None:
    resume_after(root, manager, "trainer.lora.r")


def test_a_key_that_is_newer_than_the_run_is_not_compared(
    root: TrainRoot, manager: ModelManager
) -> None:
    file = prepare_run(root, manager).directory / RUN_FILE
    started = json.loads(file.read_text())
    del started["trainer"]["eval_batches"], started["policy"]["positions"]
    file.write_text(json.dumps(started))
    prepare_run(root, manager)
