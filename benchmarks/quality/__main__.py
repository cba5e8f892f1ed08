"""Quality at a small KV budget: what budgets, score and training are worth, step by step.

    python -m benchmarks.quality                # one seed, short: make bench-quality
    python -m benchmarks.quality --long         # three seeds of 300 steps; writes docs/quality.md
    python -m benchmarks.quality --report FILE  # writes docs/quality.md from a result

A model is fine-tuned dense on one novel. From there it goes on in two arms, for the same steps and
rows: dense, and under the policy that it carries at 10 % of the entries. Both are served dense and
evicting, on another novel, with h2o, with budgets measured per head, and with the learned score;
the untrained model too, with `window` and `random` as floors. Everything is kept in `--work`, and
a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.draw import table
from benchmarks.policy_cost import measure, over_window
from benchmarks.quality.figures import Figure, figures, nested
from benchmarks.quality.form import FLOORS, LONG, SHORT, Form
from benchmarks.quality.measure import MODEL, Measured, Trained, evaluate, train
from benchmarks.quality.report import REPORT, write_report
from benchmarks.record import write_result
from llamahome.models import load_model

LAST = (
    "ppl_over_dense",
    "needle_over_dense",
    "dense_harm",
    "decode_ratio_learned_over_window",
)


def run(form: Form, work: Path, console: Console) -> dict[str, Any]:
    """Train and measure every model, and return the result."""
    base = load_model(MODEL).path
    measured: dict[str, list[list[Measured]]] = {
        "untrained": [evaluate("untrained", base, form, work, floors=True)],
        "dense": [],
        "policy": [],
    }
    curves: dict[str, list[dict[int, float]]] = {"dense": [], "policy": []}
    for seed in range(form.seeds):
        trained: dict[str, Trained] = train(seed, form, work)
        for arm, own in trained.items():
            name = f"{own.folder.parent.name}"
            measured[arm].append(evaluate(name, own.folder, form, work))
            curves[arm].append(own.curve)
        show(figures(measured), seed + 1, console)
    found = figures(measured)
    speeds, _ = measure(rounds=20, budget=205, slots=1, threads=0)
    return {
        "command": " ".join(["python -m benchmarks.quality", *_said(sys.argv[1:])]),
        "form": asdict(form),
        "figures": [asdict(own) for own in found],
        "curves": curves,
        "ppl_over_dense": nested(found, "perplexity"),
        "needle_over_dense": nested(found, "needle"),
        "dense_harm": {
            str(own.context): own.over_dense - 1
            for own in found
            if (own.arm, own.task, own.way) == ("policy", "perplexity", "full")
        },
        "decode_ratio_learned_over_window": over_window(speeds, "learned", "decode"),
    }


def _said(arguments: list[str]) -> list[str]:
    """Leave out where this machine keeps its work."""
    places = [i for i, argument in enumerate(arguments) if argument == "--work"]
    return [a for i, a in enumerate(arguments) if i not in places and i - 1 not in places]


def show(found: list[Figure], seeds: int, console: Console) -> None:
    columns = ["over dense", "95 %"]
    shown = table(f"{seeds} seeds", ["task", "context", "trained", "served", "entries"], columns)
    for own in found:
        if own.way not in FLOORS:
            what = (own.task, str(own.context), own.arm, own.way, f"{own.share:.0%}")
            shown.add_row(*what, f"{own.over_dense:.4f}", f"{own.low:.4f} - {own.high:.4f}")
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--long", action="store_true", help="three seeds; writes the report")
    what.add_argument("--report", type=Path, help="only write the report of this result")
    parser.add_argument("--seeds", type=int, help="fewer seeds than the form's")
    parser.add_argument("--steps", type=int, help="fewer steps than the form's, for each arm")
    parser.add_argument("--dense-steps", type=int, help="fewer steps of the dense stage")
    parser.add_argument("--windows", type=int, help="fewer windows of 2,048 tokens")
    parser.add_argument("--samples", type=int, help="fewer questions at each depth")
    parser.add_argument("--contexts", type=int, nargs="+", help="fewer contexts")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    options = parser.parse_args()
    console = Console()
    if options.report:
        result = json.loads(options.report.read_text())
        console.print(f"report in {write_report(result, REPORT)}")
        return
    form = LONG if options.long else SHORT
    smaller = ("seeds", "steps", "dense_steps", "windows", "samples")
    given = {name: getattr(options, name) for name in smaller}
    if options.contexts:
        given["contexts"] = tuple(options.contexts)
    form = replace(form, **{name: value for name, value in given.items() if value is not None})
    result = run(form, options.work.resolve(), console)
    file = write_result(f"quality-{form.name}", result)
    console.print(f"result in {file}")
    if options.long:
        console.print(f"report in {write_report(json.loads(file.read_text()), REPORT)}")
    print(json.dumps({name: result[name] for name in LAST}))


if __name__ == "__main__":
    main()
