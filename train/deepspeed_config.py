"""DeepSpeed's own config, from ours."""

from __future__ import annotations

from typing import Any

from llamahome.config import DeepSpeedConfig, TrainerConfig


def deepspeed_config(deepspeed: DeepSpeedConfig, trainer: TrainerConfig) -> dict[str, Any]:
    """Build the config for `deepspeed.initialize` and transformers' `HfDeepSpeedConfig`.

    The optimiser and the schedule are ours (torch's), so that no DeepSpeed kernel is compiled.
    Without ZeRO the optimiser clips, too (`train.plain_adamw`).
    """
    stage = deepspeed.stage_for(trainer)
    return {
        "train_micro_batch_size_per_gpu": trainer.batch_size,
        "gradient_accumulation_steps": trainer.accumulation,
        "gradient_clipping": trainer.max_grad_norm if stage else 0.0,
        "bf16": {"enabled": trainer.precision == "bf16"},
        "torch_autocast": {
            "enabled": trainer.precision == "mixed",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are reduced in fp32
        },
        "zero_optimization": _zero(deepspeed, stage),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,  # never
    }


def _zero(deepspeed: DeepSpeedConfig, stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": deepspeed.bucket_size,
        "allgather_bucket_size": deepspeed.bucket_size,
    }
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = deepspeed.bucket_size
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = _place(deepspeed)
    if deepspeed.offload_parameters:
        zero["offload_param"] = _place(deepspeed)
        if deepspeed.nvme_path is not None:
            zero["offload_param"]["buffer_size"] = deepspeed.buffer_size
    return zero


def _place(deepspeed: DeepSpeedConfig) -> dict[str, Any]:
    """Return the place of what is offloaded."""
    if deepspeed.nvme_path is None:
        return {"device": "cpu", "pin_memory": True}
    return {"device": "nvme", "nvme_path": deepspeed.nvme_path, "pin_memory": True}
