"""The work of one worker, from its share of the machine to the exported model."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import ray.train.torch
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import nn
from transformers import get_cosine_schedule_with_warmup, set_seed

from llamahome.attention import HybridAttention
from llamahome.config import TrainerConfig, TrainRoot
from train import checkpoint, metrics
from train.anneal import policy_at
from train.data import batches, build_datasets, eval_batches
from train.deepspeed_config import deepspeed_config
from train.divergence import DivergenceGuard
from train.export import export_model
from train.logs import record_warnings
from train.model import POLICY_MODULE, bare_model, prepare_model
from train.objectives import build_objective
from train.step import evaluate, train_step


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
    model, policy, tokenizer = prepare_model(root, settings, config["policy_model"])
    engine = start_engine(model, trainer, settings)
    bare = bare_model(model)
    attention = HybridAttention(policy, bare)
    objective = build_objective(trainer)
    progress = checkpoint.resume(engine, run_dir, has_frozen)
    guard = DivergenceGuard(run_dir, engine.skipped_steps)

    data = build_datasets(root.data, tokenizer, trainer.seed)
    share = {"rank": rank, "world_size": world_size, "pad_id": tokenizer.pad_token_id}
    # A second stage goes on in the data where the first one stopped.
    start = (trainer.dense_steps + progress.step) * trainer.accumulation
    stream = batches(data.train, root.data, trainer, start_step=start, **share)

    def report(**values: float) -> None:
        if rank == 0:
            metrics.append(run_dir, {"step": progress.step, **values})

    def report_held_out() -> None:
        loss = evaluate(engine, eval_batches(data.eval, trainer, **share), attention, objective)
        guard.after_evaluation(progress.step, loss)
        report(eval_loss=loss)

    if progress.step in (0, trainer.steps):
        report_held_out()
    while progress.step < trainer.steps:
        started = time.perf_counter()
        # A seed from the step alone, so that a restart continues dropout as well.
        set_seed(trainer.seed + progress.step * world_size + rank)
        learning_rate = engine.get_lr()[0]
        budgets = policy_at(root.policy, trainer, root.data.context_length, progress.step)
        losses, tokens = train_step(
            engine,
            list(islice(stream, trainer.accumulation)),
            HybridAttention(policy.with_config(budgets), bare),
            objective,
        )
        progress.step += 1
        progress.tokens += tokens
        warning = guard.after_step(progress.step, losses["loss"], engine.skipped_steps)
        if warning and rank == 0:
            metrics.append(run_dir, {"warning": warning})
        report(
            **losses,
            learning_rate=learning_rate,
            **({} if warning else {"grad_norm": float(engine.get_global_grad_norm())}),
            tokens=progress.tokens,
            tokens_per_second=tokens / (time.perf_counter() - started),
        )
        if is_due(progress.step, trainer.eval_every, trainer.steps):
            report_held_out()
        if is_due(progress.step, trainer.checkpoint_every, trainer.steps):
            checkpoint.save(
                engine, run_dir, progress, frozen=has_frozen, keep=trainer.keep_checkpoints
            )
    export_model(engine, tokenizer, root, run_dir, data.eval[0]["input_ids"])


def prepare_process(trainer: TrainerConfig) -> None:
    """Take this worker's GPU or CPU threads, and meet the other workers."""
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(trainer.cpus_per_worker)
    # Only inference uses this kernel; on a CPU, DeepSpeed would compile it now for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    set_seed(trainer.seed)  # adapters start equal on all workers


def start_engine(
    model: nn.Module, trainer: TrainerConfig, settings: dict[str, Any]
) -> DeepSpeedEngine:
    """Put DeepSpeed around the model, with AdamW and a warm-up followed by a cosine decay."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, trainer),
        lr=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, trainer.warmup_steps, trainer.steps)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings
    )
    return engine


def parameter_groups(model: nn.Module, trainer: TrainerConfig) -> list[dict[str, Any]]:
    """Return the trained parameters, those of the policy in a group of their own."""
    of_model: list[nn.Parameter] = []
    of_policy: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = of_policy if name.startswith(f"{POLICY_MODULE}.") else of_model
            own.append(parameter)
    groups: list[dict[str, Any]] = [{"params": of_model}]
    if of_policy:
        rate = trainer.policy_learning_rate or trainer.learning_rate
        groups.append({"params": of_policy, "lr": rate})
    return groups


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
