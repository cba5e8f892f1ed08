"""The work of one worker, from its share of the machine to the exported model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
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
from transformers import get_scheduler, set_seed

from llamahome.attention import HybridAttention, Policy
from llamahome.config import ModelConfig, TrainerConfig, TrainRoot
from train import checkpoint, metrics
from train.anneal import policy_at
from train.compiling import compile_around_attention
from train.data import batches, eval_batches
from train.deepspeed_config import deepspeed_config
from train.divergence import DivergenceGuard
from train.export import export_model
from train.full_disk import full_disk_ends
from train.logs import record_warnings
from train.meter import Meter
from train.micro_batches import parts_of
from train.model import POLICY_MODULE, bare_model, prepare_model
from train.objectives import build_objective
from train.plain_adamw import PlainAdamW
from train.preemption import PreemptionNotices
from train.records import Datasets, build_datasets
from train.resharding import for_workers
from train.samples import Sampler, build_prompts
from train.step import evaluate, train_step
from train.stopping import is_asked_to_stop

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def run_worker(config: dict[str, Any]) -> int | None:
    """Train `config["root"]` in `config["run_dir"]`, in step with all other workers.

    Returns:
        The steps done if the driver has asked for the end; None after an export.
    """
    root: TrainRoot = config["root"]
    run_dir = Path(config["run_dir"])
    with full_disk_ends(run_dir):
        return _work(root, run_dir, config["policy_model"])


def _work(root: TrainRoot, run_dir: Path, policy_model: ModelConfig) -> int | None:
    prepare_process(root.trainer)
    root = replace(root, trainer=for_workers(root.trainer, dist.get_world_size()))
    if dist.get_rank() == 0:
        record_warnings(run_dir)
    settings = deepspeed_config(root.deepspeed, root.trainer)
    model, policy, tokenizer = prepare_model(root, settings, policy_model)
    engine = start_engine(model, root.trainer, settings)
    if root.deepspeed.compile:
        compile_around_attention(engine)
    data = build_datasets(root.data, tokenizer, root.trainer.seed)
    prompts = build_prompts(root.trainer, data, tokenizer)
    sampler = Sampler(engine, policy, prompts, tokenizer, root.trainer.sample_tokens)
    training = Training(
        root, run_dir, engine, policy, data, tokenizer.pad_token_id, sampler if prompts else None
    )
    if not training.until_done():
        return training.progress.step
    export_model(engine, tokenizer, root, run_dir, data.eval[0]["input_ids"])
    if training.rank == 0:
        checkpoint.remove_set_aside(run_dir, root.trainer.steps)
    return None


class Training:
    """One worker's part of a run, from the newest checkpoint on."""

    def __init__(
        self,
        root: TrainRoot,
        run_dir: Path,
        engine: DeepSpeedEngine,
        policy: Policy,
        data: Datasets,
        pad_id: int,
        sampler: Sampler | None = None,
    ) -> None:
        trainer = root.trainer
        self.sampler = sampler
        self.root, self.run_dir, self.engine = root, run_dir, engine
        self.policy, self.bare = policy, bare_model(engine.module)
        self.held_out = data.eval
        self.objective, self.parts = build_objective(trainer), parts_of(run_dir)
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.share = {"rank": self.rank, "world_size": self.workers, "pad_id": pad_id}
        self._has_frozen = trainer.method == "lora"
        self.progress = checkpoint.resume(engine, run_dir, self._has_frozen)
        self.guard = DivergenceGuard(run_dir, engine.skipped_steps)
        self.notices = PreemptionNotices()
        # A second stage goes on in the data where the first one stopped.
        start = (trainer.dense_steps + self.progress.step) * trainer.accumulation
        self.stream = batches(data.train, root.data, trainer, start_step=start, **self.share)
        self.meter = Meter(engine, trainer, self.progress.step)
        self._record(**self.meter.hardware)

    def until_done(self) -> bool:
        """Take the steps that are left; return False if the driver has asked for the end.

        With early stopping the weights are then those of the lowest held-out loss.
        """
        trainer, progress = self.root.trainer, self.progress
        patience = trainer.early_stopping_patience
        if progress.step in (0, trainer.steps):
            self.evaluate()
        while progress.step < trainer.steps and not 0 < patience <= progress.worse:
            if is_asked_to_stop(self.run_dir, self.engine.device):
                self.save()
                return False
            self.heed_notices()
            self.step()
            if is_due(progress.step, trainer.eval_every, trainer.steps):
                self.evaluate()
            if self._is_worth_saving():
                self.save()
        if patience:
            self.take_best()
        return True

    def heed_notices(self) -> None:
        """Save when Ray announces that a worker's node will go; training goes on until then."""
        if not self.progress.step or self.guard.in_a_row:  # nothing that is worth saving
            return
        if notice := self.notices.new(self.engine.device):
            self.save()
            self._record(warning=f"{notice}; saved after step {self.progress.step}")

    def take_best(self) -> None:
        """Go back to the checkpoint of the lowest held-out loss, unless this is it."""
        best = self.progress.best_step
        if best and best != self.progress.step:
            path = checkpoint.path_of(self.run_dir, best)
            self.progress = checkpoint.load(self.engine, path, self._has_frozen)
            self.evaluate()

    def step(self) -> None:
        """Take one optimiser step with all workers, and report it."""
        trainer, progress = self.root.trainer, self.progress
        started = time.perf_counter()
        # A seed from the step alone, so that a restart continues dropout as well.
        set_seed(trainer.seed + progress.step * self.workers + self.rank)
        learning_rate = self.engine.get_lr()[0]
        budgets = policy_at(self.root.policy, trainer, self.root.data.context_length, progress.step)
        policy = self.policy.with_config(budgets)
        micro_batches = list(islice(self.stream, trainer.accumulation))
        attention = HybridAttention(policy, self.bare)
        losses, tokens = train_step(
            self.engine, micro_batches, attention, self.objective, self.parts
        )
        seconds = time.perf_counter() - started
        progress.step += 1
        progress.tokens += tokens
        norm = {}
        if warning := self.guard.after_step(
            progress.step, losses["loss"], self.engine.skipped_steps
        ):
            self._record(warning=warning)
        else:
            norm["grad_norm"] = float(self.engine.get_global_grad_norm())
        self._record(
            step=progress.step,
            **losses,
            learning_rate=learning_rate,
            **norm,
            tokens=progress.tokens,
            **self.meter.after_step(progress.step, micro_batches, policy, tokens, seconds),
        )

    def evaluate(self) -> None:
        """Measure the held-out loss under the policy, and report it after the samples."""
        held_out = eval_batches(self.held_out, self.root.trainer, **self.share)
        attention = HybridAttention(self.policy, self.bare)
        loss = evaluate(self.engine, held_out, attention, self.objective, self.parts)
        self.guard.after_evaluation(self.progress.step, loss)
        if self.progress.step:  # there is no checkpoint to go back to before the first step
            self.progress.evaluated(loss)
        for sample in self.sampler.samples() if self.sampler else ():
            if self.rank == 0:
                step = {"step": self.progress.step}
                metrics.append(self.run_dir, step | sample, metrics.SAMPLES)
        self._record(step=self.progress.step, eval_loss=loss)

    def save(self) -> None:
        """Write a checkpoint, if there is anything to save."""
        trainer = self.root.trainer
        if self.progress.step:
            checkpoint.save(
                self.engine,
                self.run_dir,
                self.progress,
                frozen=self._has_frozen,
                keep=trainer.keep_checkpoints,
            )
            name = checkpoint.path_of(self.run_dir, self.progress.step).name
            self._record(step=self.progress.step, checkpoint=name)

    def _is_worth_saving(self) -> bool:
        """Return whether a checkpoint is due; one of weights that stand still replaces no other."""
        step, trainer = self.progress.step, self.root.trainer
        if self.guard.in_a_row and step < trainer.steps:
            return False
        best = trainer.early_stopping_patience > 0 and step == self.progress.best_step
        return best or is_due(step, trainer.checkpoint_every, trainer.steps)

    def _record(self, **values: Any) -> None:
        if self.rank == 0:
            metrics.append(self.run_dir, values)


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
    """Put DeepSpeed around the model, with AdamW, a warm-up and the schedule that follows it."""
    zero = settings["zero_optimization"]["stage"] > 0
    kind = torch.optim.AdamW if zero else partial(PlainAdamW, max_grad_norm=trainer.max_grad_norm)
    optimizer = kind(
        parameter_groups(model, trainer),
        lr=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        fused=True,  # one pass over weights, gradients and state instead of a dozen
    )
    schedule = get_scheduler(
        SCHEDULES[trainer.schedule], optimizer, trainer.warmup_steps, trainer.steps
    )
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings
    )
    if not zero and dist.get_world_size() == 1:
        # It would copy all gradients into one buffer and back, to sum them up over one worker.
        engine.enable_backward_allreduce = False
    return engine


def parameter_groups(model: nn.Module, trainer: TrainerConfig) -> list[dict[str, Any]]:
    """Return the trained parameters, those of the policy in a group of their own.

    Norms and biases do not decay: they are vectors, and shrinking them regularises nothing.
    """
    maps: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    of_policy: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(f"{POLICY_MODULE}."):
            of_policy.append(parameter)
        else:
            (maps if _rank(parameter) > 1 else vectors).append(parameter)
    rate = trainer.policy_learning_rate or trainer.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": maps},
        {"params": vectors, "weight_decay": 0.0},
        {"params": of_policy, "lr": rate},
    ]
    return [group for group in groups if group["params"]]


def _rank(parameter: nn.Parameter) -> int:
    """Return the number of a parameter's axes, also of one that ZeRO-3 has flattened."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
