"""Training in plain PyTorch: one process, one unpadded row at a time, no DeepSpeed, no Ray."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from llamahome.attention import HybridAttention, build_policy
from llamahome.config import PolicyConfig, TrainRoot
from train.data import Batch, batches, eval_batches
from train.lora import add_adapters
from train.records import build_datasets


def load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder)
    HybridAttention.attach(model)
    return model


def _to_train(root: TrainRoot, folder: Path) -> PreTrainedModel | PeftModel:
    model = load(folder)
    if root.trainer.method == "full":
        return model
    set_seed(root.trainer.seed)
    return add_adapters(model, root.trainer.lora, str(folder))


def training_losses(root: TrainRoot, folder: Path) -> list[float]:
    """Return the loss of each step of `root`, computed with torch's AdamW alone."""
    model = _to_train(root, folder).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": root.trainer.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step, rows in enumerate(_global_batches(root, folder)):
        loss = _mean_loss(model, rows, root.policy)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, root.trainer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(root, step)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def held_out_loss(root: TrainRoot, folder: Path) -> float:
    """Return the loss of the model in `folder` on the held-out rows of all workers of `root`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = build_datasets(root.data, tokenizer, root.trainer.seed).eval
    rows: list[dict[str, Tensor]] = []
    for rank in range(root.trainer.num_workers):
        rows += _rows(
            eval_batches(
                held_out,
                root.trainer,
                rank=rank,
                world_size=root.trainer.num_workers,
                pad_id=0,
            )
        )
    return _mean_loss(load(folder).eval(), rows, root.policy).item()


def _global_batches(root: TrainRoot, folder: Path) -> Iterable[list[dict[str, Tensor]]]:
    trainer = root.trainer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = build_datasets(root.data, tokenizer, trainer.seed).train
    streams = [
        batches(
            rows,
            root.data,
            trainer,
            rank=rank,
            world_size=trainer.num_workers,
            start_step=trainer.dense_steps * trainer.accumulation,
            pad_id=0,
        )
        for rank in range(trainer.num_workers)
    ]
    for _ in range(trainer.steps):
        yield _rows(next(stream) for stream in streams for _ in range(trainer.accumulation))


def _rows(batched: Iterable[Batch]) -> list[dict[str, Tensor]]:
    """Return each document of each row by itself, without padding."""
    rows = []
    for batch in batched:
        documents = batch.get("documents", batch["attention_mask"] - 1)
        for ids, numbers, labels in zip(
            batch["input_ids"], documents, batch["labels"], strict=True
        ):
            for number in range(int(numbers.max()) + 1):
                own = numbers == number
                rows.append({"input_ids": ids[own], "labels": labels[own]})
    return rows


def _mean_loss(
    model: PreTrainedModel | PeftModel, rows: list[dict[str, Tensor]], policy: PolicyConfig
) -> Tensor:
    attention = HybridAttention(build_policy(policy))
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model(row["input_ids"][None], use_cache=False, hybrid=attention).logits[0, :-1]
        targets = row["labels"][1:]
        total = total + F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        count += int((targets != -100).sum())
    return total / count


def _learning_rate(root: TrainRoot, step: int) -> float:
    peak, warmup = root.trainer.learning_rate, root.trainer.warmup_steps
    if step < warmup:
        return peak * step / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / (root.trainer.steps - warmup)))
