"""What every worker does, from its share of the machine to the exported model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import deepspeed
import deepspeed.ops
import ray.train.torch
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup, set_seed

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig, TrainerConfig, TrainRoot
from train import checkpoint, metrics
from train.anneal import policy_at
from train.data import batches, build_datasets, eval_batches
from train.deepspeed_config import deepspeed_config
from train.export import export_model
from train.logs import record_warnings
from train.loss import Batch, count_tokens, distillation_losses, gradient_scale, label_loss
from train.model import prepare_model


def run_worker(config: dict[str, Any]) -> None:
    """Train `config["root"]` in `config["run_dir"]`, in step with all other workers."""
    root: TrainRoot = config["root"]
    run_dir = Path(config["run_dir"])
    trainer, has_frozen = root.trainer, root.trainer.method == "lora"
    prepare_process(trainer)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        record_warnings(run_dir)

    settings = deepspeed_config(root.deepspeed, trainer)
    model, tokenizer = prepare_model(root, settings)
    engine = start_engine(model, trainer, settings)
    attention = attention_for(model, root.policy)
    progress = checkpoint.resume(engine, has_frozen)

    data = build_datasets(root.data, tokenizer, trainer.seed)
    share = {"rank": rank, "world_size": world_size, "pad_id": tokenizer.pad_token_id}
    stream = batches(
        data.train,
        data=root.data,
        batch_size=trainer.batch_size,
        seed=trainer.seed,
        start_step=progress.step * trainer.accumulation,
        **share,
    )

    def report(**values: float) -> None:
        if rank == 0:
            metrics.append(run_dir, {"step": progress.step, **values})

    def report_held_out() -> None:
        held_out = eval_batches(
            data.eval, batch_size=trainer.batch_size, limit=trainer.eval_batches, **share
        )
        report(eval_loss=evaluate(engine, held_out, attention))

    if progress.step == 0:
        report_held_out()
    while progress.step < trainer.steps:
        started = time.perf_counter()
        # From the step alone, so that dropout too goes on as it would have after a restart.
        set_seed(trainer.seed + progress.step * world_size + rank)
        learning_rate = engine.get_lr()[0]
        policy = policy_at(root.policy, trainer, root.data.context_length, progress.step)
        losses, tokens = train_step(
            engine,
            list(islice(stream, trainer.accumulation)),
            attention_for(model, policy),
            kl_weight=trainer.kl_weight,
        )
        progress.step += 1
        progress.tokens += tokens
        report(
            **losses,
            learning_rate=learning_rate,
            grad_norm=float(engine.get_global_grad_norm()),
            tokens=progress.tokens,
            tokens_per_second=tokens / (time.perf_counter() - started),
        )
        if is_due(progress.step, trainer.eval_every, trainer.steps):
            report_held_out()
        if is_due(progress.step, trainer.checkpoint_every, trainer.steps):
            checkpoint.save(engine, run_dir, progress, has_frozen)
    export_model(engine, tokenizer, root, run_dir)


def prepare_process(trainer: TrainerConfig) -> None:
    """Take this worker's GPU or CPU threads and meet the other workers."""
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(trainer.cpus_per_worker)
    # Only inference uses this kernel; on a CPU, DeepSpeed would compile it now for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    set_seed(trainer.seed)  # adapters start alike on all workers


def attention_for(model: PreTrainedModel | PeftModel, policy: PolicyConfig) -> HybridAttention:
    """Hybrid attention for the model, whether or not it wears adapters."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    return HybridAttention(build_policy(policy), cast(PreTrainedModel, bare))


def start_engine(
    model: nn.Module, trainer: TrainerConfig, settings: dict[str, Any]
) -> DeepSpeedEngine:
    """DeepSpeed around the model, AdamW, and a warm-up followed by a cosine decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=trainer.learning_rate, weight_decay=trainer.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, trainer.warmup_steps, trainer.steps)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings
    )
    return engine


def train_step(
    engine: DeepSpeedEngine,
    micro_batches: Sequence[Batch],
    attention: HybridAttention,
    *,
    kl_weight: float = 0.0,
) -> tuple[dict[str, float], int]:
    """One optimiser step over this worker's micro-batches.

    Args:
        kl_weight: of the divergence from the dense model; with 0 there is none.

    Returns:
        Means over the labels of the global batch, `loss` and, with a kl_weight, its parts `ce` and
        `kl`; and the tokens in it.
    """
    labels, tokens = count_tokens(micro_batches, engine.device)
    scale = gradient_scale(labels)
    total = torch.zeros(3, device=engine.device)  # loss, ce, kl
    engine.train()
    for batch in micro_batches:
        batch = _to_device(batch, engine.device)
        if kl_weight:
            ce, kl = distillation_losses(engine, batch, attention)
        else:
            ce = label_loss(engine, batch, attention)
            kl = torch.zeros_like(ce)
        loss = ce + kl_weight * kl
        engine.backward(loss * scale, scale_wrt_gas=False)
        engine.step()
        total += torch.stack([loss, ce, kl]).detach()
    dist.all_reduce(total)
    means = dict(zip(("loss", "ce", "kl"), (total / max(labels, 1)).tolist(), strict=True))
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss is {means['loss']} after {engine.global_steps} steps; "
            "lower trainer.learning_rate"
        )
    return means if kl_weight else {"loss": means["loss"]}, tokens


@torch.no_grad()
def evaluate(
    engine: DeepSpeedEngine, held_out: Iterable[Batch], attention: HybridAttention
) -> float:
    """Mean loss over the held-out labels of all workers, under the policy."""
    engine.eval()
    total = torch.zeros((), device=engine.device)
    held_out = list(held_out)
    for batch in held_out:
        total += label_loss(engine, _to_device(batch, engine.device), attention)
    labels, _ = count_tokens(held_out, engine.device)
    dist.all_reduce(total)
    return float(total) / labels


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
