"""Mistakes that are found before Ray starts, each in one line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamahome.config import (
    ClusterConfig,
    ConfigError,
    LoraConfig,
    PolicyConfig,
    TrainerConfig,
    TrainRoot,
)
from llamahome.models import ModelError, ModelManager
from tests.train.test_run import changed
from train.pipeline import TrainingPipeline
from train.preflight import check_cluster, check_machine, check_model, slow_precision
from train.run import prepare_run

CPUS = os.cpu_count() or 1
GPUS = torch.cuda.device_count()


@pytest.mark.parametrize(
    ("trainer", "num_cpus", "expected"),
    [
        (
            {"num_workers": CPUS + 1},
            None,
            rf"trainer\.num_workers={CPUS + 1} .* needs {CPUS + 1} CPUs, and there are {CPUS}; "
            rf".* cluster\.num_cpus={CPUS + 1}$",
        ),
        ({"cpus_per_worker": CPUS}, None, rf"trainer\.cpus_per_worker={CPUS} needs {2 * CPUS} "),
        ({"num_workers": 2}, 1, "needs 2 CPUs, and there are 1"),
        (
            {"num_workers": GPUS + 1, "use_gpu": True},
            CPUS + 1,
            rf"trainer\.use_gpu=true .* needs {GPUS + 1} GPUs, and there are {GPUS}; set trainer",
        ),
    ],
)
def test_more_than_the_machine_has_is_refused(
    root: TrainRoot, trainer: dict[str, Any], num_cpus: int | None, expected: str
) -> None:
    asked = changed(root, "trainer", **trainer).trainer
    with pytest.raises(ConfigError, match=expected) as refused:
        check_machine(asked, ClusterConfig(num_cpus=num_cpus))
    assert "\n" not in str(refused.value)


def test_workers_may_share_cpus(root: TrainRoot) -> None:
    workers = changed(root, "trainer", num_workers=3 * CPUS).trainer
    check_machine(workers, ClusterConfig(num_cpus=3 * CPUS))


def test_a_run_that_does_not_fit_the_machine_leaves_no_folder(
    root: TrainRoot, manager: ModelManager
) -> None:
    asked = changed(root, "trainer", num_workers=CPUS + 1, batch_size=1)
    with pytest.raises(ConfigError, match="CPUs"):
        TrainingPipeline(asked, manager=manager).run()
    assert not Path(str(root.trainer.output_dir)).exists()


def test_a_cluster_without_gpus_is_refused_unless_it_grows(root: TrainRoot) -> None:
    trainer = changed(root, "trainer", use_gpu=True).trainer
    have = {"CPU": 16.0, "GPU": 1.0}
    with pytest.raises(ConfigError, match=r"needs 2 GPUs, and there are 1; set trainer\.num_w"):
        check_cluster(trainer, ClusterConfig(address="auto"), have)
    remote = ClusterConfig(address="ray://head:10001")
    assert str(check_cluster(trainer, remote, have)).startswith("waiting for nodes: trainer.use_g")
    assert check_cluster(trainer, remote, {"CPU": 2.0, "GPU": 2.0}) is None


def test_a_target_that_the_model_lacks_is_refused(root: TrainRoot, manager: ModelManager) -> None:
    lora = LoraConfig(target_modules=["q_proj", "no_such_projection"])
    with pytest.raises(ConfigError, match="no 'no_such_projection'; choose among down_proj"):
        prepare_run(changed(root, "trainer", method="lora", lora=lora), manager)
    assert not Path(str(root.trainer.output_dir)).exists()


def test_a_policy_that_does_not_fit_the_model_is_refused(
    root: TrainRoot, manager: ModelManager
) -> None:
    pattern = {"L7": 24}
    policy = PolicyConfig(name="h2o", budget=24, sink=2, recent=12, interval=8, pattern=pattern)
    with pytest.raises(ConfigError, match=r"policy\.pattern"):
        prepare_run(replace(root, policy=policy), manager)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nobody/runs"])
def test_runs_that_cannot_be_written_are_refused(
    root: TrainRoot, manager: ModelManager, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    asked = changed(root, "trainer", output_dir=str(tmp_path / place))
    with pytest.raises(ConfigError, match=r"trainer\.output_dir='.*' cannot be written to") as bad:
        prepare_run(asked, manager)
    assert "\n" not in str(bad.value)
    nowhere = ModelManager(tmp_path / place)
    with pytest.raises(ConfigError, match=r"LLAMAHOME_CACHE='.*' cannot be written to"):
        prepare_run(changed(root, "trainer", output_dir=None), nowhere)
    with pytest.raises(ConfigError, match=r"LLAMAHOME_CACHE='.*' cannot be written to"):
        nowhere.resolve("smollm2-135m-instruct")


def test_a_file_in_the_place_of_a_run_is_refused(root: TrainRoot, manager: ModelManager) -> None:
    runs = Path(str(root.trainer.output_dir))
    runs.mkdir()
    (runs / str(root.trainer.run_name)).touch()
    with pytest.raises(ConfigError, match=r"trainer\.output_dir='.*tiny' cannot be written to"):
        prepare_run(root, manager)
    assert len(list(runs.iterdir())) == 1


def test_attention_dropout_is_refused(root: TrainRoot, model_dir: Path, tmp_path: Path) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1')
    )
    with pytest.raises(ModelError, match=r"attention_dropout=0\.1 is not supported"):
        check_model(root, [tmp_path])


def test_a_disk_without_libaio_or_without_room_for_a_shard_is_refused(
    root: TrainRoot, manager: ModelManager, tmp_path: Path
) -> None:
    """The machine decides which of the two is said first."""
    asked = changed(
        changed(root, "trainer", use_gpu=True),
        "deepspeed",
        zero_stage=3,
        offload_parameters=True,
        nvme_path=str(tmp_path),
        buffer_size=1000,
    )
    with pytest.raises(
        ConfigError, match=r"nvme_path=.* needs libaio|buffer_size=1000: .* has 4160 elements"
    ) as refused:
        prepare_run(asked, manager)
    assert "\n" not in str(refused.value)
    assert not Path(str(root.trainer.output_dir)).exists()


def test_compiling_on_a_cpu_needs_a_compiler(
    root: TrainRoot, manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = changed(root, "deepspeed", compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"deepspeed\.compile=true: .* needs a C\+\+ compiler"):
        prepare_run(compiled, manager)


def test_an_elastic_run_needs_room_for_its_fewest_workers(root: TrainRoot) -> None:
    elastic = changed(root, "trainer", num_workers=CPUS + 1, min_workers=CPUS, accumulation=CPUS)
    elastic = changed(elastic, "trainer", eval_batches=CPUS)
    check_machine(elastic.trainer, ClusterConfig())
    with pytest.raises(ConfigError, match=rf"trainer\.min_workers={CPUS} with .* there are 0"):
        check_cluster(elastic.trainer, ClusterConfig(address="auto"), {})


@pytest.mark.parametrize(
    ("asked", "processor", "slow"),
    [
        ({"precision": "mixed"}, {"architecture": "x86_64", "avx512_f": True}, True),
        ({"precision": "bf16"}, {"architecture": "x86_64", "avx512_bf16": False}, True),
        ({"precision": "mixed"}, {"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"precision": "mixed"}, {"architecture": "x86_64", "amx_bf16": True}, False),
        ({"precision": "mixed"}, {"architecture": "aarch64"}, False),
        ({"precision": "mixed", "use_gpu": True}, {"architecture": "x86_64"}, False),
        ({"precision": "fp32"}, {"architecture": "x86_64"}, False),
    ],
)
def test_a_processor_without_bf16_is_named(
    asked: dict[str, Any], processor: dict[str, Any], slow: bool
) -> None:
    warning = slow_precision(TrainerConfig(**asked), processor)
    assert (warning is not None) is slow
    assert not slow or str(warning).startswith(f"trainer.precision={asked['precision']}: ")


def test_torch_names_what_this_processor_has() -> None:
    assert "architecture" in torch.cpu.get_capabilities()
