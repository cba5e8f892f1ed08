"""Training of the models, and the figures of each."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.quality.form import Form, Policies
from benchmarks.workload import DENSE
from llamahome.config import (
    DataConfig,
    EngineConfig,
    EvalConfig,
    ModelConfig,
    PolicyConfig,
    TrackingConfig,
    TrainerConfig,
    TrainRoot,
)
from llamahome.evaluation import Evaluation, Result
from llamahome.models import load_model

DTYPE = "bfloat16"  # dtype of the models under measurement
DENSE_SHARE = 0.25  # dense steps of the hybrid arm
ENGINE = EngineConfig(slots=6, weights="fp32")


def train(arm: str, seed: int, form: Form, policy: PolicyConfig, work: Path) -> Path:
    """Return the folder of a fine-tuned model; train it, or resume a run that was stopped."""
    from train.pipeline import TrainingPipeline  # Ray takes seconds to import

    folder = work / "runs" / f"{form.name}-{arm}-{seed}" / "model"
    if folder.is_dir():
        return folder
    cores = os.cpu_count() or 1
    trainer = TrainerConfig(
        run_name=f"{form.name}-{arm}-{seed}",
        output_dir=str(work / "runs"),
        method="lora",
        steps=form.steps,
        warmup_steps=min(5, form.steps - 1),
        learning_rate=1e-3,
        dense_share=DENSE_SHARE,
        budget_jitter=0.5,
        seed=seed,
        num_workers=1,
        cpus_per_worker=cores,
        eval_every=0,
        eval_batches=1,
        checkpoint_every=10,
    )
    root = TrainRoot(
        policy=DENSE if arm == "dense" else policy,
        data=DataConfig(
            format="custom",
            train_file="datasets/retrieval.py",
            context_length=form.context,
            batching="padding",
        ),
        trainer=trainer,
        tracking=TrackingConfig(wandb="disabled", tensorboard=False),
    )
    return TrainingPipeline(root).run().model_dir


@dataclass(frozen=True)
class Served:
    """Figures of one model, by task and policy."""

    results: list[Result]

    def find(self, task: str, policy: PolicyConfig) -> dict[str, Any]:
        wanted = asdict(policy)
        return next(r.values for r in self.results if (r.task, r.policy) == (task, wanted))

    def nll(self, policy: PolicyConfig) -> float:
        return statistics.fmean(self.find("perplexity", policy)["nll"])

    def needle(self, policy: PolicyConfig) -> float:
        return float(self.find("needle", policy)["accuracy"])


def evaluate(
    name: str, folder: Path | str, form: Form, texts: Policies, asked: Policies, work: Path
) -> Served:
    """Measure one model: perplexity under the policies `texts`, needles under `asked`."""
    loaded = load_model(ModelConfig(name=str(folder), dtype=DTYPE))
    results: list[Result] = []
    for task, policies in (("perplexity", texts), ("needle", asked)):
        config = EvalConfig(
            tasks=[task],
            contexts=[form.context],
            windows=form.windows,
            depths=6,
            samples=form.samples,
        )
        evaluation = Evaluation(
            loaded,
            name,
            {form.context: policies},
            config,
            ENGINE,
            work / f"{form.name}.jsonl",
        )
        with Progress(transient=True) as bar:
            shown = bar.add_task(f"{name} {task}", total=None)
            results += evaluation.run(
                lambda _, done, total, bar=bar, shown=shown: bar.update(  # type: ignore[misc]
                    shown, completed=done, total=total
                )
            )
    return Served(results)
