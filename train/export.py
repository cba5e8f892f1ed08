"""The trained model as a plain Hugging Face folder that carries its policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamahome.config import TrainRoot
from llamahome.models import (
    load_model,
    write_adapter_policy,
    write_checksums,
    write_policy,
    write_policy_weights,
)
from llamahome.models.adapters import merge_adapter
from train.model import POLICY_MODULE, model_to_train


def export_model(
    engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerBase, root: TrainRoot, run_dir: Path
) -> None:
    """Write `run_dir/model`, complete or not at all; all workers take part, rank 0 writes.

    Full fine-tuning exports all weights, LoRA the weights with the adapters merged in or, with
    `trainer.export=adapter`, the adapters alone.
    """
    weights = _trained_weights(engine)
    if dist.get_rank() != 0:
        return
    of_policy = {
        name.removeprefix(f"{POLICY_MODULE}."): weights.pop(name)
        for name in list(weights)
        if name.startswith(f"{POLICY_MODULE}.")
    }
    with _replaced(run_dir / "model") as folder:
        if root.trainer.method == "lora":
            _write_adapter(engine.module, weights, root, folder)
        else:
            _write_model(engine.module, weights, root, folder)
        if of_policy:
            write_policy_weights(folder, of_policy)
        tokenizer.save_pretrained(folder)
        write_checksums(folder)


def _trained_weights(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Return every trained parameter by name, tied ones once, on rank 0's CPU; empty elsewhere."""
    sharded = engine.zero_optimization_stage() == 3
    weights = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights


def _write_model(
    model: PreTrainedModel, weights: dict[str, Tensor] | None, root: TrainRoot, folder: Path
) -> None:
    write_policy(model.config, root.policy)
    model.save_pretrained(folder, state_dict=weights)


def _write_adapter(
    adapted: PeftModel, weights: dict[str, Tensor], root: TrainRoot, folder: Path
) -> None:
    adapted.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    if root.trainer.export == "adapter":
        write_adapter_policy(folder, root.policy)
        return
    # The worker's own base may be sharded (ZeRO-3) by now, so the adapters go into a fresh one.
    base = load_model(model_to_train(root)).model
    merged = merge_adapter(base, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    _write_model(merged, None, root, folder)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block is done."""
    partial, former = target.with_suffix(".partial"), target.with_suffix(".former")
    for left_over in (partial, former):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    yield partial
    if target.exists():
        os.replace(target, former)
    os.replace(partial, target)
    shutil.rmtree(former, ignore_errors=True)
