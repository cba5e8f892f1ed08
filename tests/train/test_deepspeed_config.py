"""DeepSpeed's config."""

from __future__ import annotations

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
