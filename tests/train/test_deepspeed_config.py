"""DeepSpeed's config."""

from __future__ import annotations

from typing import Any

import pytest

from llamahome.config import DeepSpeedConfig, TrainerConfig
from train.deepspeed_config import deepspeed_config


def test_batch_precision_and_clipping_follow_the_trainer() -> None:
    trainer = TrainerConfig(batch_size=3, accumulation=4, max_grad_norm=0.5, precision="bf16")
    config = deepspeed_config(DeepSpeedConfig(), trainer)
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True}
    assert not config["torch_autocast"]["enabled"]


def test_mixed_precision_keeps_weights_and_gradients_in_fp32() -> None:
    config = deepspeed_config(DeepSpeedConfig(), TrainerConfig(precision="mixed"))
    assert config["bf16"] == {"enabled": False}
    assert config["torch_autocast"]["enabled"]
    assert config["torch_autocast"]["lower_precision_safe_modules"] == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_and_bucket_size_are_passed_on(stage: int) -> None:
    zero = deepspeed_config(DeepSpeedConfig(zero_stage=stage, bucket_size=1000), TrainerConfig())[
        "zero_optimization"
    ]
    assert zero["stage"] == stage
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1000
    assert zero.get("stage3_prefetch_bucket_size") == (1000 if stage == 3 else None)


def test_nothing_is_offloaded_unless_asked() -> None:
    zero = deepspeed_config(DeepSpeedConfig(zero_stage=3), TrainerConfig())["zero_optimization"]
    assert "offload_optimizer" not in zero
    assert "offload_param" not in zero


def test_offloading_goes_to_host_memory() -> None:
    deepspeed = DeepSpeedConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    zero = deepspeed_config(deepspeed, TrainerConfig(use_gpu=True))["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"


def test_nvme_keys_are_those_of_deepspeed() -> None:
    """DeepSpeed's own config takes them and refuses keys it does not know."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # it looks for its device

    nvme = {"nvme_path": "/disk", "buffer_size": 7, "zero_stage": 3}
    deepspeed = DeepSpeedConfig(offload_optimizer=True, offload_parameters=True, **nvme)
    zero = DeepSpeedZeroConfig(**deepspeed_config(deepspeed, TrainerConfig())["zero_optimization"])
    for offload in (zero.offload_optimizer, zero.offload_param):
        assert (str(offload.device), str(offload.nvme_path)) == ("nvme", "/disk")
    assert zero.offload_param.buffer_size == 7


def test_without_zero_deepspeed_does_not_clip() -> None:
    assert (
        deepspeed_config(DeepSpeedConfig(zero_stage=0), TrainerConfig())["gradient_clipping"] == 0
    )


@pytest.mark.parametrize(
    ("trainer", "deepspeed", "stage"),
    [
        ({}, {}, 0),
        ({"num_workers": 2}, {}, 2),
        ({"precision": "bf16"}, {}, 2),
        ({}, {"offload_optimizer": True}, 2),
        ({}, {"zero_stage": 1}, 1),
    ],
)
def test_a_worker_alone_shards_nothing_unless_something_needs_it(
    trainer: dict[str, Any], deepspeed: dict[str, Any], stage: int
) -> None:
    config = deepspeed_config(
        DeepSpeedConfig(**deepspeed), TrainerConfig(**{"num_workers": 1, **trainer})
    )
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == (1.0 if stage else 0.0)
