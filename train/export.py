"""The trained model as a plain Hugging Face folder that carries its policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig, TrainRoot
from llamahome.models import (
    load_model,
    write_adapter_policy,
    write_checksums,
    write_policy,
    write_policy_weights,
)
from llamahome.models.adapters import merge_adapter
from llamahome.models.four_bits import write_mark
from llamahome.models.probe import LIMITS
from train.errors import ExportError
from train.model import POLICY_MODULE, model_to_train
from train.runs.folder import ADAPTER, MODEL

SAMPLE_TOKENS = 16
_DENSE = HybridAttention(build_policy(PolicyConfig.dense()))


def export_model(
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    root: TrainRoot,
    run_dir: Path,
    sample: Sequence[int],
) -> None:
    """Write `run_dir/model`, complete or not at all; all workers take part, rank 0 writes.

    Full fine-tuning exports all weights, LoRA the weights with the adapters merged in, and the
    adapters in `run_dir/adapter`; with `trainer.export=adapter` the model is the adapters alone.
    Adapters that were trained on 4 bits are merged into what these hold, in fp32.

    Args:
        sample: tokens on which the exported model must predict what the trained one does.

    Raises:
        ExportError: when it predicts something else.
    """
    ids = torch.tensor([sample[:SAMPLE_TOKENS]])
    engine.eval()
    trained = _log_probs(engine, ids.to(engine.device))
    weights = _trained_weights(engine)
    if dist.get_rank() != 0:
        return
    of_policy = {
        name.removeprefix(f"{POLICY_MODULE}."): weights.pop(name)
        for name in list(weights)
        if name.startswith(f"{POLICY_MODULE}.")
    }
    lora, merged = root.trainer.method == "lora", root.trainer.export == "merged"
    if lora and merged:
        with _replaced(run_dir / ADAPTER) as folder:
            _write_adapter(engine.module, weights, root, folder)
            _complete(folder, of_policy, tokenizer)
    with _replaced(run_dir / MODEL) as folder:
        if not lora:
            _write_model(engine.module, weights, root, folder)
        elif merged:
            # The worker's own base may be sharded (ZeRO-3) by now, so a fresh one takes them.
            base = load_model(model_to_train(root)).model
            _write_model(merge_adapter(base, run_dir / ADAPTER), None, root, folder)
        else:
            _write_adapter(engine.module, weights, root, folder)
        _complete(folder, of_policy, tokenizer)
        _check_same(trained, ids, root, folder)


def _complete(
    folder: Path, of_policy: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Add the policy's weights, the tokenizer and the checksums."""
    if of_policy:
        write_policy_weights(folder, of_policy)
    tokenizer.save_pretrained(folder)
    write_checksums(folder)


@torch.no_grad()
def _log_probs(model: Callable[..., Any], ids: Tensor) -> Tensor:
    """Return log-probabilities (1, T, V) in float32 on the CPU, without eviction."""
    positions = _DENSE.position_ids(ids)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, hybrid=_DENSE).logits
    return cast(Tensor, logits.float().log_softmax(dim=-1).cpu())


def _check_same(trained: Tensor, ids: Tensor, root: TrainRoot, folder: Path) -> None:
    exported = load_model(replace(model_to_train(root), name=str(folder), revision=None)).model
    HybridAttention.attach(exported)
    gap = float((_log_probs(exported, ids) - trained).abs().mean())
    rounded = root.trainer.precision != "fp32"  # `mixed` trains in bf16 what it exports in fp32
    if not gap <= LIMITS[torch.bfloat16 if rounded else torch.float32]:  # nor is nan
        raise ExportError(
            f"the exported model predicts something else than the trained one (log-probabilities "
            f"are off by {gap:.2g} nats), so nothing was exported; {folder} has it for a report. "
            "Choose other trainer.lora.target_modules, or trainer.method=full, in a new run"
        )


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
    write_adapter_policy(folder, root.policy)
    if root.trainer.lora.base_bits is not None:
        write_mark(folder)


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
