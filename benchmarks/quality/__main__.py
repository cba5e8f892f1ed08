"""Does training under the policy that serves keep quality at a small budget?

    python -m benchmarks.quality            # one seed, short: make bench-quality
    python -m benchmarks.quality --long     # three seeds; writes docs/quality.md

Two models are fine-tuned on one novel with the same recipe, data, steps and seeds: one dense, one
under the pattern that `llamahome calibrate` proposes for 10 % of the KV entries. Both are served
dense and evicting, on another novel: perplexity, KL to dense and needles, under that pattern, under
h2o with equal budgets, and under `window` and `random` as controls. The model as it came stands
beside them under every policy. Everything is kept in `--work`; a benchmark that was stopped goes on
from there.
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
    EngineConfig,
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
REPORT = Path(__file__).parents[2] / "docs" / "quality.md"
DENSE = PolicyConfig(name="full", budget=None)
DTYPE = "bfloat16"  # of the models that are measured
Policies = list[PolicyConfig]
ARMS = ("dense", "hybrid")
TOTALS = (0.1, 0.2)  # of the pattern, as shares of the context
TRAINED = 0.1  # the total that the hybrid arm trains under
DENSE_SHARE = 0.25  # of its steps
PUBLISHED = ["h2o", "value_norm", "snapkv", "tova", "keydiff", "window", "random"]


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
    name="short", seeds=1, steps=30, context=2048, windows=3, samples=1, budgets=(0.1, 0.2)
)
LONG = Form(
    name="long",
    seeds=3,
    steps=30,
    context=2048,
    windows=3,
    samples=2,
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
        dense_share=DENSE_SHARE,
        budget_jitter=0.5,
        precision="bf16",
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


def at_equal_budgets(names: Sequence[str], budgets: Sequence[float], form: Form) -> Policies:
    config = EvalConfig(policies=list(names), budgets=list(budgets), context=form.context)
    return measured_policies(PolicyConfig(), config, None)


def evaluate(
    name: str, folder: Path | str, form: Form, texts: Policies, asked: Policies, work: Path
) -> Served:
    """Every figure of one model: perplexity under `texts`, needles under `asked`."""
    loaded = load_model(ModelConfig(name=str(folder), dtype=DTYPE))
    results: list[Result] = []
    for task, policies in (("perplexity", texts), ("needle", asked)):
        config = EvalConfig(
            tasks=[task],
            context=form.context,
            windows=form.windows,
            depths=6,
            samples=form.samples,
        )
        engine = EngineConfig(slots=6, weights="fp32")
        evaluation = Evaluation(loaded, name, policies, config, engine, work / f"{form.name}.jsonl")
        with Progress(transient=True) as bar:
            shown = bar.add_task(f"{name} {task}", total=None)
            results += evaluation.run(
                lambda _, done, total, bar=bar, shown=shown: bar.update(  # type: ignore[misc]
                    shown, completed=done, total=total
                )
            )
    return Served(results)


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


def figures(
    dense: Served, hybrid: Served, form: Form, proposed: dict[float, PolicyConfig]
) -> dict[str, float]:
    """What one seed shows; perplexities are ratios to the dense model served dense."""
    best, found = dense.nll(DENSE), max(dense.needle(DENSE), 1e-9)
    said = {"dense_harm": math.exp(hybrid.nll(DENSE) - best) - 1}
    for share, pattern in proposed.items():
        percent = round(100 * share)
        (flat,) = at_equal_budgets(["h2o"], [share], form)
        for name, policy in (("", pattern), ("flat_", flat)):
            opened, left = dense.nll(policy) - best, hybrid.nll(policy) - best
            said[f"{name}gap_closed_{percent}"] = 1 - left / opened
            said[f"{name}ppl_over_dense_{percent}"] = math.exp(left)
            said[f"{name}untrained_ppl_over_dense_{percent}"] = math.exp(opened)
        said[f"needle_over_dense_{percent}"] = hybrid.needle(pattern) / found
        said[f"untrained_needle_over_dense_{percent}"] = dense.needle(pattern) / found
    return said


def served_rows(models: dict[str, list[Served]]) -> list[dict[str, Any]]:
    """A row for every way that a model is served, seeds side by side in lists."""
    rows = []
    for model, seeds in models.items():
        for result in seeds[0].results:
            policy = PolicyConfig(**result.policy)
            found = [own.find(result.task, policy) for own in seeds]
            values: dict[str, Any] = (
                {"accuracy": [f["accuracy"] for f in found]}
                if result.task == "needle"
                else {
                    "nll": [statistics.fmean(f["nll"]) for f in found],
                    "kl": [statistics.fmean(f["kl"]) for f in found],
                }
            )
            kind = "pattern" if policy.pattern else policy.name
            rows.append(
                {"model": model, "task": result.task, "policy": kind, "budget": policy.budget}
                | {"kv_share": found[0]["kv"]["final"] / found[0]["kv"]["dense"]}
                | values
            )
    return rows


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
    options = parser.parse_args()
    form: Form = options.form
    work: Path = options.work.resolve()
    console = Console()
    base = load_model(ModelConfig())
    proposed = patterns(base, form)
    own = list(proposed.values())
    compared = at_equal_budgets(PUBLISHED, TOTALS, form)
    untrained = evaluate("untrained", base.path, form, [*own, *compared], own, work)
    texts = [
        *own,
        *at_equal_budgets(["h2o"], form.budgets, form),
        *at_equal_budgets(["window"], TOTALS, form),
        *at_equal_budgets(["random"], [0.1], form),
    ]
    asked_for = [*own, *at_equal_budgets(["h2o"], [0.2], form)]
    by_seed, served = [], []
    for seed in range(form.seeds):
        arms = {}
        for arm in ARMS:
            folder = train(arm, seed, form, proposed[TRAINED], work)
            arms[arm] = evaluate(f"{arm}-{seed}", folder, form, texts, asked_for, work)
        served.append(arms)
        by_seed.append(figures(arms["dense"], arms["hybrid"], form, proposed))
        show(by_seed, console)
    result = {
        "form": asdict(form),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m benchmarks.quality --{form.name}",
        "seeds": by_seed,
        "served": served_rows(
            {"untrained": [untrained], **{a: [s[a] for s in served] for a in ARMS}}
        ),
        "patterns": {str(share): asdict(policy) for share, policy in proposed.items()},
        **{name: interval([seed[name] for seed in by_seed])[0] for name in by_seed[0]},
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"quality-{form.name}-{datetime.now(UTC):%Y-%m-%d}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"result in {file}")
    if form is LONG:
        from benchmarks.quality.report import write_report

        console.print(f"report in {write_report(result, REPORT)}")
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
