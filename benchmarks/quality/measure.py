"""Training of the models, and the figures of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.quality.form import FLOORS, LEARNED, TRAINED, Form, Way, ways
from benchmarks.workload import DENSE
from llamahome.attention.shape import ModelShape
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
from llamahome.config.policy import CARRIED, entries
from llamahome.evaluation import Evaluation
from llamahome.models import LoadedModel, load_model
from llamahome.models.policy_copy import copy_with_policy
from train import metrics

ENGINE = EngineConfig(slots=6, weights="fp32")
MODEL = ModelConfig(dtype="float32")
CONTEXT = 2048  # tokens of a training row


@dataclass(frozen=True)
class Trained:
    """A model, and its held-out loss by step as its own run measured it."""

    folder: Path
    curve: dict[int, float]


def train(seed: int, form: Form, work: Path) -> dict[str, Trained]:
    """Train both arms, or resume those that were stopped.

    They share a dense stage. `policy` goes on under the policy, with that stage's model as the
    teacher; `dense` goes on without eviction, for as many steps on the same rows.
    """
    from train.pipeline import TrainingPipeline  # Ray takes seconds to import

    def arm(root: TrainRoot) -> Trained:
        directory = Path(str(root.trainer.output_dir)) / str(root.trainer.run_name)
        if not (directory / "model").is_dir():
            TrainingPipeline(root).run()
        return Trained(directory / "model", metrics.series(metrics.read(directory), "eval_loss"))

    root = _root(seed, form, work)
    evicting = arm(root)
    stage = evicting.folder.parent.with_name(f"{root.trainer.run_name}-dense") / "model"
    # The second stage of a run whose policy evicts nothing, without a teacher.
    control = replace(root.trainer, run_name=_name("dense", seed, form), kl_weight=0.0)
    dense = replace(
        root,
        model=ModelConfig(name=str(stage)),
        policy=DENSE,
        trainer=replace(control, dense_steps=0, anneal_steps=0, dense_share=0.0, budget_jitter=0.0),
    )
    return {"dense": arm(dense), "policy": evicting}


def _name(arm: str, seed: int, form: Form) -> str:
    return f"{form.name}-{form.dense_steps}-{form.steps}-{arm}-{seed}"


def _root(seed: int, form: Form, work: Path) -> TrainRoot:
    trainer = TrainerConfig(
        run_name=_name("policy", seed, form),
        output_dir=str(work / "runs"),
        method="lora",
        dense_steps=form.dense_steps,
        steps=form.steps,
        warmup_steps=min(10, form.steps - 1),
        learning_rate=1e-3,
        kl_weight=1.0,
        anneal_steps=form.steps // 5,
        dense_share=0.1,
        budget_jitter=0.5,
        precision="mixed",
        seed=seed,
        num_workers=1,
        cpus_per_worker=os.cpu_count() or 1,
        eval_every=max(10, form.steps // 4),
        eval_batches=2,
        checkpoint_every=10,
    )
    return TrainRoot(
        policy=PolicyConfig(name=CARRIED, budget=entries(TRAINED, CONTEXT)),
        data=DataConfig(
            format="custom",
            train_file="datasets/retrieval.py",
            context_length=CONTEXT,
            batching="padding",
        ),
        trainer=trainer,
        tracking=TrackingConfig(wandb="disabled", tensorboard=False),
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of one model.

    Attributes:
        way: name of the policy; `full` is dense.
        share: entries per KV head, as a share of the context; 1 for dense.
        values: of the task, as `llamahome eval` writes them.
    """

    task: str
    context: int
    way: str
    share: float
    values: dict[str, Any]


def evaluate(
    name: str, folder: Path, form: Form, work: Path, *, floors: bool = False
) -> list[Measured]:
    """Measure one model: every way to serve it, and its answers dense and under the learned one.

    A model that carries no learned policy gets that of the embedded model.

    Args:
        floors: measure `window` and `random`, too.
    """
    loaded = _carrying(load_model(replace(MODEL, name=str(folder))), name, work)
    assert loaded.policy is not None
    shape = ModelShape.of(loaded.model)
    measured = []
    for context in form.contexts:
        every = ways(loaded.policy.config, shape.num_layers, shape.num_kv_heads, form, context)
        every = [way for way in every if floors or way.name not in FLOORS]
        answered = [way for way in every if way.name == LEARNED and way.share in (0.1, 0.2)]
        for task, own in (("perplexity", every), ("needle", answered)):
            measured += _task(loaded, name, task, context, own, form, work)
    return measured


def _carrying(loaded: LoadedModel, name: str, work: Path) -> LoadedModel:
    if loaded.policy is not None and loaded.policy.weights is not None:
        return loaded
    embedded = load_model(MODEL).policy
    assert embedded is not None
    folder = work / "served" / name
    copy_with_policy(loaded.path, folder, embedded)
    return load_model(replace(MODEL, name=str(folder)))


def _task(
    loaded: LoadedModel,
    name: str,
    task: str,
    context: int,
    own: Sequence[Way],
    form: Form,
    work: Path,
) -> list[Measured]:
    config = EvalConfig(
        tasks=[task],
        contexts=[context],
        windows=form.windows_of(context),
        depths=6,
        samples=form.samples,
    )
    policies = {context: [way.policy for way in own]}
    evaluation = Evaluation(loaded, name, policies, config, ENGINE, work / "figures.jsonl")
    with Progress(transient=True) as bar:
        shown = bar.add_task(f"{name} {task} {context}", total=None)
        results = evaluation.run(
            lambda _, done, total: bar.update(shown, completed=done, total=total)
        )
    names = [("full", 1.0), *((way.name, way.share) for way in own)]
    return [
        Measured(task=task, context=context, way=way, share=share, values=result.values)
        for (way, share), result in zip(names, results, strict=True)
    ]
