"""One training by another program, in this process: plain PyTorch, transformers' Trainer, TRL.

    python -m benchmarks.training.peers NAME < order

It reads an `Order` as JSON and prints a `Taken` as its last line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.training.orders import Order, Taken, differences
from llamahome.config import ModelConfig
from llamahome.models import load_model


class Clock(TrainerCallback):
    """Notes when each step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._note()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note()

    def _note(self) -> None:
        self.ends.append(time.perf_counter())
        self.cpu_ends.append(time.process_time())

    def on_log(self, *_: Any, **given: Any) -> None:
        if "loss" in given["logs"]:
            self.losses.append(given["logs"]["loss"])


def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, order: Order) -> Clock:
    """Train in the plainest loop of PyTorch, with the fused AdamW that all others use."""
    clock, collate = Clock(), DataCollatorForSeq2Seq(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=order.learning_rate, weight_decay=0.0, fused=True
    )
    model.train()
    clock.on_train_begin()
    for rows in _batches(order):
        loss = model(**collate(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_log(logs={"loss": loss.item()})
        clock.on_step_end()
    return clock


def trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, order: Order) -> Clock:
    """Train with transformers' Trainer."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(folder, train_sampling_strategy="sequential", **_arguments(order)),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=_dataset(order),
            callbacks=[clock],
        ).train()
    return clock


def sft_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, order: Order) -> Clock:
    """Train with TRL's SFTTrainer."""
    trl = importlib.import_module("trl")  # it has no types
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trl.SFTTrainer(
            model,
            trl.SFTConfig(
                folder, max_length=None, train_sampling_strategy="sequential", **_arguments(order)
            ),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=_dataset(order),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock


def _arguments(order: Order) -> dict[str, Any]:
    """Return the options of both trainers that make them do the same work as the others."""
    return {
        "max_steps": order.steps,
        "per_device_train_batch_size": order.batch_size,
        "learning_rate": order.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _dataset(order: Order) -> Any:
    """Return the rows as a data set of Hugging Face, whose name a folder of ours has, too."""
    return importlib.import_module("datasets").Dataset.from_list(order.rows)


def _batches(order: Order) -> Iterator[list[dict[str, list[int]]]]:
    for step in range(order.steps):
        yield order.rows[step * order.batch_size : (step + 1) * order.batch_size]


PEERS: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase, Order], Clock]] = {
    "plain": plain,
    "trainer": trainer,
    "trl": sft_trainer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=PEERS)
    name = parser.parse_args().name
    order = Order(**json.load(sys.stdin))
    torch.set_num_threads(order.threads)
    torch.manual_seed(0)
    loaded = load_model(ModelConfig(dtype="float32"))
    loaded.model.set_attn_implementation("sdpa")
    clock = PEERS[name](loaded.model, loaded.tokenizer, order)
    taken = Taken(
        seconds=differences(clock.ends),
        cpu_seconds=differences(clock.cpu_ends),
        others=[0.0] * order.steps,
        losses=clock.losses,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    print(json.dumps(asdict(taken)))


if __name__ == "__main__":
    main()
