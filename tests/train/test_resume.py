"""Every key of a run is either fixed or free when the run is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from llamahome.config import ConfigError, TrainRoot
from llamahome.models import ModelManager
from tests.train.test_run import changed
from train.run import prepare_run
from train.runs.folder import RUN_FILE

# A new key must be added to one of the two.
FIXED = {
    "model": "name revision dtype",
    "policy": "name budget sink recent interval decay normalize group window seed layers pattern "
    "positions",
    "data": "format train_file mix mix_times eval_file eval_fraction context_length batching "
    "overlong train_on max_bad_records limit",
    "trainer": "method dense_steps batch_tokens learning_rate policy_learning_rate "
    "warmup_steps schedule weight_decay objective beta kl_weight "
    "label_smoothing neftune_alpha anneal_steps budget_jitter "
    "dense_share max_grad_norm precision seed",
    "trainer.lora": "r alpha dropout target_modules train_norms rslora dora base_bits",
    "deepspeed": "zero_stage",
}
FREE = {
    "log": "format level",
    "trainer": "run_name output_dir export steps gradient_checkpointing cpus_per_worker use_gpu "
    "min_workers eval_every checkpoint_every keep_checkpoints early_stopping_patience max_failures "
    "sample_prompts sample_held_out sample_tokens",
    "data": "cache_dir cache_bytes",
    "deepspeed": "offload_optimizer offload_parameters nvme_path buffer_size bucket_size compile",
    "tracking": "wandb project entity tensorboard mlflow",
    "search": "samples space scheduler metric grace reduction seed",
    "cluster": "address num_cpus temp_dir dashboard",
}

# Free as long as their products stay: the global batch, and the held-out rows.
FACTORS = {"trainer": "batch_size accumulation num_workers eval_batches"}


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
    root = changed(root, "deepspeed", zero_stage=2)  # a stage that is not set is the run's own
    return changed(root, "trainer", method="lora")


def test_every_key_is_decided() -> None:
    assert sorted(spelled(FIXED) + spelled(FREE) + spelled(FACTORS)) == sorted(
        keys(asdict(TrainRoot()))
    )


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
    del (
        started["trainer"]["eval_batches"],
        started["trainer"]["seed"],
        started["policy"]["positions"],
    )
    file.write_text(json.dumps(started))
    prepare_run(root, manager)


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 2)])
def test_a_stage_follows_from_the_workers_and_stays(
    root: TrainRoot, manager: ModelManager, workers: int, stage: int
) -> None:
    """A resumed run keeps its stage, with other workers and from before stages were chosen."""
    root = changed(root, "trainer", num_workers=workers)
    run = prepare_run(root, manager)
    assert run.root.deepspeed.zero_stage == stage
    shared = {"accumulation": workers, "eval_batches": 8 * workers, "num_workers": 1}
    again = prepare_run(changed(root, "trainer", **shared), manager)
    assert again.root.deepspeed.zero_stage == stage

    started = json.loads((run.directory / RUN_FILE).read_text())
    started["deepspeed"]["zero_stage"] = 1
    (run.directory / RUN_FILE).write_text(json.dumps(started))
    assert prepare_run(root, manager).root.deepspeed.zero_stage == 1
    with pytest.raises(ConfigError, match=r"zero_stage=3 \(was 1\)"):
        prepare_run(changed(root, "deepspeed", zero_stage=3), manager)


def test_the_global_batch_may_be_shared_otherwise(root: TrainRoot, manager: ModelManager) -> None:
    prepare_run(root, manager)
    prepare_run(changed(root, "trainer", num_workers=1, accumulation=2, eval_batches=16), manager)
    prepare_run(changed(root, "trainer", batch_size=1, accumulation=2, eval_batches=16), manager)


@pytest.mark.parametrize(
    ("trainer", "cure"),
    [
        (
            {"num_workers": 1},
            r"global batches of 2, and the run has 4; set trainer\.accumulation=2",
        ),
        (
            {"batch_size": 3},
            r"global batches of 6, and the run has 4; choose numbers whose product",
        ),
        (
            {"num_workers": 1, "accumulation": 2},
            r"held-out rows of 16, and the run has 32; set trainer\.eval_batches=16",
        ),
    ],
)
def test_another_global_batch_is_refused_with_the_cure(
    root: TrainRoot, manager: ModelManager, trainer: dict[str, int], cure: str
) -> None:
    prepare_run(root, manager)
    with pytest.raises(ConfigError, match=cure) as refused:
        prepare_run(changed(root, "trainer", **trainer), manager)
    assert "\n" not in str(refused.value)
