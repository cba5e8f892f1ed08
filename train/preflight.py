"""Checks before anything starts: CPUs and GPUs, and the model without its weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention
from llamahome.attention.shape import ModelShape
from llamahome.config import ClusterConfig, ConfigError, TrainerConfig, TrainRoot
from llamahome.models import ModelError, choose_policy
from llamahome.models.describe import read_config
from llamahome.models.errors import one_line
from llamahome.models.four_bits import LACKING, has_bitsandbytes
from llamahome.models.pretrained import FAILURES, decoder_class
from llamahome.models.probe import check_layers
from llamahome.models.weight_files import weight_files
from train.lora import check_targets

# `ray up` leaves it on a head node, whose cluster starts nodes when a run asks for them.
AUTOSCALER = Path("~/ray_bootstrap_config.yaml").expanduser()


def check_machine(trainer: TrainerConfig, cluster: ClusterConfig) -> None:
    """Compare a run with this machine, where its own Ray will start.

    Raises:
        ConfigError: for more CPUs or GPUs than there are.
    """
    have = {"CPU": cluster.num_cpus or os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    if short := _lacking(trainer, have):
        raise ConfigError(short)


def slow_precision(trainer: TrainerConfig, processor: Mapping[str, Any]) -> str | None:
    """Return a warning of a precision that this machine's processor is slow at.

    Args:
        processor: `torch.cpu.get_capabilities()`.
    """
    fast = any(processor.get(name) for name in ("avx512_bf16", "amx_bf16"))
    other = processor.get("architecture") != "x86_64"
    if trainer.use_gpu or trainer.precision == "fp32" or fast or other:
        return None
    return (
        f"trainer.precision={trainer.precision}: this processor has no bf16 instructions "
        "(AVX512-BF16, AMX), so it takes several times as long as trainer.precision=fp32"
    )


def check_cluster(
    trainer: TrainerConfig, cluster: ClusterConfig, have: Mapping[str, float]
) -> str | None:
    """Compare a run with the Ray that it has joined, and return what to wait for, if anything.

    Args:
        have: the resources of the nodes that are there.

    Raises:
        ConfigError: for more CPUs or GPUs than there are, where no node will be added.
    """
    short = _lacking(trainer, have)
    if short is None:
        return None
    grows = cluster.address not in ("auto", "local") or AUTOSCALER.is_file()
    if not grows:
        raise ConfigError(short)
    return f"waiting for nodes: {short}"


def _lacking(trainer: TrainerConfig, have: Mapping[str, float]) -> str | None:
    """Return one line on the CPUs or GPUs that a run asks for and Ray does not have."""
    workers, each = trainer.min_workers or trainer.num_workers, trainer.cpus_per_worker
    name = "trainer.num_workers" if trainer.min_workers is None else "trainer.min_workers"
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    if trainer.use_gpu and gpus < workers:
        cure = f"set {name}={gpus}" if gpus else "set trainer.use_gpu=false"
        return (
            f"trainer.use_gpu=true with {name}={workers} needs {workers} GPUs, and "
            f"there are {gpus}; {cure}"
        )
    if workers * each > cpus:
        return (
            f"{name}={workers} with trainer.cpus_per_worker={each} needs "
            f"{workers * each} CPUs, and there are {cpus}; lower one of them, or let workers of a "
            f"local Ray share CPUs with cluster.num_cpus={workers * each}"
        )
    return None


def check_model(root: TrainRoot, chain: list[Path]) -> None:
    """Build the model of an `adapter_chain` without weights, as workers will with them.

    Raises:
        ConfigError: for a key that does not fit the model.
        ModelError: for a model that cannot be trained.
    """
    model = _without_weights(chain[-1])
    if root.trainer.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"trainer.gradient_checkpointing=true: {type(model).__name__} does not support it; "
            "set it to false"
        )
    if root.trainer.method == "lora":
        check_targets(model, root.trainer.lora)
    if root.trainer.lora.base_bits is not None and not has_bitsandbytes():
        raise ConfigError(f"trainer.lora.base_bits={root.trainer.lora.base_bits}: {LACKING}")
    _check_engine(root, model)
    shape = ModelShape.of(model)
    root.policy.check_model(shape.num_layers, shape.num_kv_heads)
    choose_policy(root.policy, None, model, chain[0], new_weights=True)


def _check_engine(root: TrainRoot, model: PreTrainedModel) -> None:
    """Check what DeepSpeed and torch compile or read and write in this run."""
    deepspeed, trainer = root.deepspeed, root.trainer
    if deepspeed.compile and not trainer.use_gpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise ConfigError(
            "deepspeed.compile=true: on a CPU torch.compile needs a C++ compiler, and there is no "
            "g++; install it, name another one in the environment variable CXX, or set it to false"
        )
    if deepspeed.nvme_path is None:
        return
    check_nvme(deepspeed.nvme_path, root.cluster.address == "local")
    largest = max(parameter.numel() for parameter in model.parameters())
    shard = -(-largest // (trainer.min_workers or trainer.num_workers))
    if deepspeed.offload_parameters and shard > deepspeed.buffer_size:
        raise ConfigError(
            f"deepspeed.buffer_size={deepspeed.buffer_size}: a worker's share of the largest "
            f"parameter has {shard} elements; set it to at least that"
        )


def check_nvme(path: str, here: bool) -> None:
    """Check that DeepSpeed can read and write asynchronously.

    Args:
        path: the folder that is read and written.
        here: workers run on this machine.

    Raises:
        ConfigError: without libaio, or for a folder on this machine that cannot be written.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder  # rarely needed, and seconds to import

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            f"deepspeed.nvme_path={path!r}: DeepSpeed's async_io operator needs libaio and its "
            "headers; install them (Debian and Ubuntu: libaio-dev), or leave nvme_path out"
        )
    if here and not os.access(path, os.W_OK):
        raise ConfigError(
            f"deepspeed.nvme_path={path!r} is no folder that can be written; create it, or name "
            "another one"
        )


def _without_weights(folder: Path) -> PreTrainedModel:
    config = read_config(folder)
    check_layers(config, folder)
    weight_files(folder)
    if getattr(config, "attention_dropout", 0):
        raise ModelError(
            f"{folder / 'config.json'}: attention_dropout={config.attention_dropout} is not "
            "supported; set it to 0"
        )
    try:
        with torch.device("meta"):
            model = decoder_class(config)(config)
        HybridAttention.attach(model)
    except FAILURES as error:
        raise ModelError(f"{folder / 'config.json'} makes no model ({one_line(error)})") from error
    return model
