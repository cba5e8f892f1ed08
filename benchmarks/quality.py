"""Does training under the policy that serves keep quality at a small budget?

    python -m benchmarks.quality            # one seed, short: make bench-quality
    python -m benchmarks.quality --long     # three seeds

Two models are fine-tuned on one novel with the same recipe, data, steps and seeds: one dense, one
under h2o. Both are then served dense and evicting, on another novel: perplexity, KL to dense and
needles, with `window` and `random` as controls and with the pattern that `llamahome calibrate`
proposes. Runs and figures are kept in `--work`; a benchmark that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llamahome.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    PolicyConfig,
    TrackingConfig,
    TrainerConfig,
    TrainRoot,
)
from llamahome.evaluation import Evaluation, Result, measured_policies
from llamahome.models import LoadedModel, load_model

RESULTS = Path(__file__).parent / "results"
DENSE = PolicyConfig(name="full", budget=None)
ARMS = ("dense", "hybrid")
TOTALS = (0.1, 0.2)  # of the pattern, as shares of the context


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is done."""

    name: str
    seeds: int
    steps: int
    context: int
    windows: int
    samples: int
    budgets: tuple[float, ...]


SHORT = Form(
    name="short", seeds=1, steps=40, context=2048, windows=4, samples=2, budgets=(0.1, 0.2)
)
LONG = Form(
    name="long",
    seeds=3,
    steps=80,
    context=2048,
    windows=8,
    samples=4,
    budgets=(0.05, 0.1, 0.2, 0.5),
)
TINY = Form(name="tiny", seeds=2, steps=2, context=512, windows=1, samples=1, budgets=(0.1, 0.2))


def train(arm: str, seed: int, form: Form, policy: PolicyConfig, work: Path) -> Path:
    """The folder of a fine-tuned model; trained now, or taken up where it was left."""
    from train.pipeline import TrainingPipeline

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
        kl_weight=1.0,
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
            format="text",
            train_file="train/datasets/emma.txt.gz",
            context_length=form.context,
            eval_fraction=0.02,
        ),
        trainer=trainer,
        tracking=TrackingConfig(wandb="disabled", tensorboard=False),
    )
    return TrainingPipeline(root).run().model_dir


def patterns(loaded: LoadedModel, form: Form) -> dict[float, PolicyConfig]:
    """What `llamahome calibrate` proposes for each total."""
    from llamahome.evaluation.calibrate import probes, propose, retrieval_scores
    from llamahome.evaluation.text import load_text

    length = min(1024, form.context)
    asked = probes(loaded.tokenizer, load_text("pydoc"), length=length, count=5, seed=0)
    scores = retrieval_scores(loaded.model, asked)
    return {
        share: propose(
            scores, PolicyConfig(), total=round(share * form.context), context=form.context
        )
        for share in TOTALS
    }


def evaluate(
    name: str,
    folder: Path | str,
    form: Form,
    proposed: Sequence[PolicyConfig],
    work: Path,
) -> list[Result]:
    """Every figure of one model."""
    loaded = load_model(ModelConfig(name=str(folder)))
    config = EvalConfig(
        tasks=["perplexity", "needle"],
        policies=["h2o", "window", "random"],
        budgets=list(form.budgets),
        context=form.context,
        windows=form.windows,
        depths=6,
        samples=form.samples,
    )
    policies = [*proposed, *measured_policies(PolicyConfig(), config, None)]
    evaluation = Evaluation(loaded, name, policies, config, work / f"{form.name}.jsonl")
    with Progress(transient=True) as bar:
        tasks = {task: bar.add_task(f"{name} {task}", total=None) for task in config.tasks}
        return evaluation.run(
            lambda task, done, total: bar.update(tasks[task], completed=done, total=total)
        )


@dataclass(frozen=True)
class Served:
    """The figures of one model, by how it is served."""

    results: list[Result]

    def find(self, task: str, policy: PolicyConfig) -> dict[str, Any]:
        wanted = asdict(policy)
        return next(r.values for r in self.results if (r.task, r.policy) == (task, wanted))

    def nll(self, policy: PolicyConfig) -> float:
        return statistics.fmean(self.find("perplexity", policy)["nll"])

    def needle(self, policy: PolicyConfig) -> float:
        return float(self.find("needle", policy)["accuracy"])


def h2o(form: Form, share: float) -> PolicyConfig:
    config = EvalConfig(policies=["h2o"], budgets=[share], context=form.context)
    return measured_policies(PolicyConfig(), config, None)[0]


def figures(
    dense: Served, hybrid: Served, form: Form, proposed: dict[float, PolicyConfig]
) -> dict[str, float]:
    """What one seed shows; perplexities are ratios, gaps differences of log perplexity."""
    own, served = h2o(form, 0.1), DENSE
    opened = dense.nll(own) - dense.nll(served)
    left = hybrid.nll(own) - dense.nll(served)
    said: dict[str, float] = {
        "gap_closed_10": 1 - left / opened,
        "ppl_over_dense_10": math.exp(left),
        "ppl_over_dense_20": math.exp(hybrid.nll(h2o(form, 0.2)) - dense.nll(served)),
        "dense_harm": math.exp(hybrid.nll(served) - dense.nll(served)) - 1,
    }
    for share, pattern in proposed.items():
        percent = round(100 * share)
        found = max(dense.needle(DENSE), 1e-9)
        said[f"needle_over_dense_{percent}"] = hybrid.needle(pattern) / found
        said[f"pattern_ppl_over_dense_{percent}"] = math.exp(
            hybrid.nll(pattern) - dense.nll(served)
        )
    return said


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the half-width of its 95 % interval (Student's t); None for a single value."""
    if len(values) < 2:
        return values[0], None
    t = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--long", action="store_const", const=LONG, dest="form", default=SHORT)
    forms.add_argument("--tiny", action="store_const", const=TINY, dest="form")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    asked = parser.parse_args()
    form: Form = asked.form
    work: Path = asked.work.resolve()
    console = Console()
    proposed = patterns(load_model(ModelConfig()), form)
    by_seed = []
    for seed in range(form.seeds):
        served = {}
        for arm in ARMS:
            folder = train(arm, seed, form, h2o(form, 0.1), work)
            results = evaluate(f"{arm}-{seed}", folder, form, list(proposed.values()), work)
            served[arm] = Served(results)
        by_seed.append(figures(served["dense"], served["hybrid"], form, proposed))
        show(by_seed, console)
    result = {
        "form": asdict(form),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seeds": by_seed,
        "patterns": {str(share): asdict(policy) for share, policy in proposed.items()},
        **{name: interval([seed[name] for seed in by_seed])[0] for name in by_seed[0]},
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"quality-{form.name}-{datetime.now(UTC):%Y-%m-%d}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"result in {file}")
    print(json.dumps(result))


def show(by_seed: list[dict[str, float]], console: Console) -> None:
    table = Table(title=f"Trained under eviction, {len(by_seed)} seeds")
    for column in ("figure", "mean", "95 %"):
        table.add_column(column, justify="right")
    for name in by_seed[0]:
        mean, half = interval([seed[name] for seed in by_seed])
        table.add_row(name, f"{mean:.4f}", "" if half is None else f"± {half:.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
