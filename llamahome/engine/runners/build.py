"""The choice of a model's runner: the C++ kernels where they can compute it, else torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from llamahome.attention import Policy
from llamahome.config import ConfigError, EngineConfig
from llamahome.engine.runners.contract import Runner
from llamahome.engine.runners.native import NativeRunner
from llamahome.engine.runners.native_model import unsupported
from llamahome.models.decoder import Decoder
from llamahome.native import NativeUnavailableError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from llamahome.engine.runners.torch import TorchRunner

logger = logging.getLogger(__name__)

KV_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}


def build_runner(
    model: PreTrainedModel | PeftModel | Decoder, policy: Policy, config: EngineConfig
) -> Runner:
    """Build the runner that `engine.runner` names; for `auto` the fastest that can do it.

    Raises:
        ConfigError: when `engine.runner=native` cannot be, or the runner has no such KV dtype.
    """
    on_cpu = model.device.type == "cpu"
    if config.runner != "torch":
        reason: str | None = f"the model is on {model.device}"
        if on_cpu:
            reason = unsupported(model.config, policy.config, config.max_length)
        if reason is None:
            try:
                return _native(model, policy, config)
            except NativeUnavailableError as error:
                reason = str(error)
        if config.runner == "native":
            raise ConfigError(f"engine.runner='native': {reason}; use engine.runner=auto")
        if on_cpu:
            logger.warning("decoding on the slow path of torch: %s", reason)
    assert not isinstance(model, Decoder)  # read only where the kernels can compute it
    return _torch(model, policy, config)


def _native(
    model: PreTrainedModel | PeftModel | Decoder, policy: Policy, config: EngineConfig
) -> NativeRunner:
    # 16 bits are exact enough with 8-bit weights; float32 weights ask for exact results.
    chosen = config.kv_dtype
    if chosen == "auto":
        chosen = "fp32" if config.weights == "fp32" else "fp16"
    if chosen == "bf16":
        raise ConfigError("engine.kv_dtype='bf16' is for GPUs; on a CPU use fp16, int8 or fp32")
    return NativeRunner(
        model,
        policy,
        num_slots=config.slots,
        max_length=config.max_length,
        int8=config.weights != "fp32",
        kv_dtype=KV_DTYPES[chosen],
        threads=config.num_threads,
    )


def _torch(model: PreTrainedModel | PeftModel, policy: Policy, config: EngineConfig) -> TorchRunner:
    from llamahome.engine.runners.torch import TorchRunner  # transformers' modelling code

    on_cpu = model.device.type == "cpu"
    if config.weights == "int8" and not on_cpu:
        raise ConfigError("engine.weights='int8' is for CPUs; on a GPU use engine.weights=auto")
    if config.kv_dtype == "int8":
        raise ConfigError(
            "engine.kv_dtype='int8' needs engine.runner=native; here use fp16, bf16, fp32 or auto"
        )
    return TorchRunner(
        model,
        policy,
        num_slots=config.slots,
        max_length=config.max_length,
        # Torch in place of the kernels has their precision; torch by choice is exact.
        int8=config.weights == "int8"
        or (config.weights == "auto" and config.runner == "auto" and on_cpu),
        kv_dtype=KV_DTYPES.get(config.kv_dtype),
    )
