"""Quality at a small KV budget: training under the policy that serves, and dense training.

    python -m benchmarks.quality                # one seed, short: make bench-quality
    python -m benchmarks.quality --long         # three seeds; writes docs/quality.md
    python -m benchmarks.quality --report FILE  # writes docs/quality.md from a result of --long

Two models are fine-tuned on one novel with the same recipe, data, steps and seeds: one dense, one
under the pattern that `llamahome calibrate` proposes for 10 % of the KV entries. Both are served
dense and evicting, on another novel: perplexity, KL to dense and needles, under that pattern, under
h2o with equal budgets, and under `window` and `random` as controls. The untrained model is measured
under every policy, too. Everything is kept in `--work`, and a run that was stopped resumes there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.draw import table
from benchmarks.quality.figures import figures, interval, served_rows
from benchmarks.quality.form import LONG, SHORT, TOTALS, TRAINED, Form, at_equal_budgets, patterns
from benchmarks.quality.measure import Served, evaluate, train
from benchmarks.quality.report import REPORT, write_report
from benchmarks.record import write_result
from llamahome.config import ModelConfig, PolicyConfig
from llamahome.models import load_model

ARMS = ("dense", "hybrid")
PUBLISHED = ["h2o", "value_norm", "snapkv", "tova", "keydiff", "window", "random"]


def show(by_seed: list[dict[str, float]], console: Console) -> None:
    shown = table(f"Trained under eviction, {len(by_seed)} seeds", [], ["figure", "mean", "95 %"])
    for name in by_seed[0]:
        mean, half = interval([seed[name] for seed in by_seed])
        shown.add_row(name, f"{mean:.4f}", "" if half is None else f"± {half:.4f}")
    console.print(shown)


def run(form: Form, work: Path, console: Console) -> dict[str, Any]:
    """Train and measure every model, and return the result."""
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
    asked = [*own, *at_equal_budgets(["h2o"], [0.2], form)]
    by_seed = []
    served: dict[str, list[Served]] = {"untrained": [untrained], **{arm: [] for arm in ARMS}}
    for seed in range(form.seeds):
        for arm in ARMS:
            folder = train(arm, seed, form, proposed[TRAINED], work)
            served[arm].append(evaluate(f"{arm}-{seed}", folder, form, texts, asked, work))
        by_seed.append(figures(served["dense"][-1], served["hybrid"][-1], form, proposed))
        show(by_seed, console)
    return summary(form, by_seed, served, proposed)


def summary(
    form: Form,
    by_seed: list[dict[str, float]],
    served: dict[str, list[Served]],
    proposed: dict[float, PolicyConfig],
) -> dict[str, Any]:
    return {
        "form": asdict(form),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",  # as the report says it
        "command": f"python -m benchmarks.quality --{form.name}",
        "seeds": by_seed,
        "served": served_rows(served),
        "patterns": {str(share): asdict(policy) for share, policy in proposed.items()},
        **{name: interval([seed[name] for seed in by_seed])[0] for name in by_seed[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--long", action="store_true", help="three seeds; writes the report")
    what.add_argument("--report", type=Path, help="only write the report of this result")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    options = parser.parse_args()
    console = Console()
    if options.report:
        result = json.loads(options.report.read_text())
        console.print(f"report in {write_report(result, REPORT)}")
        return
    form = LONG if options.long else SHORT
    result = run(form, options.work.resolve(), console)
    file = write_result(f"quality-{form.name}", result)
    console.print(f"result in {file}")
    if options.long:
        console.print(f"report in {write_report(json.loads(file.read_text()), REPORT)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
