"""`llamahome calibrate`: a policy that is made for a model."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from llamahome.cli import options
from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.config.checks import require
from llamahome.config.policy import entries, with_budgets

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from llamahome.attention import Policy
    from llamahome.evaluation.calibration.retrieval import Probe
    from llamahome.models import LoadedModel

SHOWN = 10
MEASURED = 4  # windows
LOOKUP_SHARE = 15  # heads of which one looks things up
FLOOR = 0.4  # share of the context that heads that look things up keep at least
TEXTS = ("northanger_abbey", "pydoc")


class Method(StrEnum):
    """Ways to calibrate."""

    ERROR = "error"
    LEARNED = "learned"
    RETRIEVAL = "retrieval"


class Made(NamedTuple):
    """A policy, and by what each head was judged: (L, G)."""

    policy: PolicyConfig
    judged: Tensor
    weights: Policy | None = None


def calibrate(
    model: options.Model = options.EMBEDDED,
    method: Annotated[
        Method,
        typer.Option(
            help="error: a budget for each KV head, from the error that eviction makes there. "
            "learned: the same, and a score that is trained for the model. "
            "retrieval: heads that look things up keep everything."
        ),
    ] = Method.ERROR,
    policy: Annotated[str, typer.Option(help="For error: the policy that the heads have.")] = "h2o",
    budget: Annotated[
        float, typer.Option(help="Entries per KV head on average; up to 1, a share of --context.")
    ] = 0.1,
    context: Annotated[int, typer.Option(help="Tokens the budget is meant for.", min=64)] = 2048,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="persuasion, northanger_abbey, pydoc, or a file; may come again. "
            f"[default: {', '.join(TEXTS)}]"
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(help="Windows of each text; a score learns from all of them.", min=1)
    ] = 2,
    lookup_heads: Annotated[
        int | None,
        typer.Option(
            help="Heads that look things up. They keep at least 40 % of the context, or for "
            "retrieval everything [default: one of 15; for retrieval leave the others a quarter].",
            min=0,
        ),
    ] = None,
    probes: Annotated[int, typer.Option(help="Prompts that ask for what they told.", min=1)] = 6,
    recent: Annotated[int, typer.Option(help="Newest tokens that always stay.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the policy there: as YAML for conf/policy if it ends in .yaml, else as a "
            "model's folder that carries it."
        ),
    ] = None,
) -> None:
    """Make a policy for a model: how much each KV head keeps, and by which score.

    Examples:

      llamahome calibrate --budget 0.2 --output conf/policy/mine.yaml

      llamahome calibrate --method learned --windows 8 --output my-model
    """
    with options.plain_errors():
        require(budget > 0, "--budget", budget, "it must be above 0")
        total = entries(budget, context)
        require(total < context, "--budget", budget, f"below --context={context}; else be dense")
        _check_output(output, method)
        wanted = Wanted(method, policy, total, context, lookup_heads, recent)
        loaded = _load(model)
        made = _make(loaded, wanted, text or list(TEXTS), windows, probes, seed)
        _show(made, total, context)
        if output is not None:
            _write(loaded, made, output)
    chosen = made.policy
    if made.weights is None:
        typer.echo(_overrides(chosen))
    typer.echo(
        json.dumps(
            {
                "policy": chosen.name,
                "budget": chosen.budget,
                "pattern": chosen.pattern,
                "judged": made.judged.tolist(),
            }
        )
    )


class Wanted(NamedTuple):
    """Options that say what the policy should be."""

    method: Method
    policy: str
    total: int
    context: int
    lookup_heads: int | None
    recent: int


def _check_output(output: Path | None, method: Method) -> None:
    if method is not Method.LEARNED:
        return
    if output is None:
        raise ConfigError("--method=learned: say where its weights go, with --output FOLDER")
    if output.suffix == ".yaml":
        raise ConfigError(f"--output={output}: a learned policy has weights; name a new folder")
    if output.exists():
        raise ConfigError(f"--output={output} exists; name a new folder, or remove it")


def _load(name: str) -> LoadedModel:
    from llamahome.engine.text.loading import torch_device
    from llamahome.models import load_model

    return load_model(ModelConfig(name=name), device=torch_device("auto"))


def _make(
    loaded: LoadedModel, wanted: Wanted, texts: list[str], count: int, probes: int, seed: int
) -> Made:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from llamahome.evaluation.calibration.readings import windows
    from llamahome.evaluation.calibration.retrieval import probes as draw
    from llamahome.evaluation.text import load_text

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    asked = draw(
        loaded.tokenizer,
        load_text(texts[0], field="--text"),
        length=wanted.context,
        count=probes,
        seed=seed,
    )
    with Progress(*columns, transient=True) as bar:
        scores = _lookup_scores(loaded, asked, bar)
        if wanted.method is Method.RETRIEVAL:
            return _retrieving(scores, wanted)
        read = [
            ids
            for text in texts
            for ids in windows(loaded.tokenizer, text, length=wanted.context, count=count)
        ]
        return _measured(loaded, wanted, read, asked, scores, bar)


def _lookup_scores(loaded: LoadedModel, asked: list[Probe], bar: Progress) -> Tensor:
    from llamahome.evaluation.calibration.retrieval import retrieval_scores

    task = bar.add_task("looking for heads that look things up", total=len(asked))
    return retrieval_scores(loaded.model, asked, on_probe=lambda: bar.advance(task))


def _retrieving(scores: Tensor, wanted: Wanted) -> Made:
    from llamahome.evaluation.calibration.retrieval import propose

    policy = propose(
        scores,
        PolicyConfig(),
        total=wanted.total,
        context=wanted.context,
        full_heads=wanted.lookup_heads,
    )
    return Made(policy, scores)


def _measured(
    loaded: LoadedModel,
    wanted: Wanted,
    read: list[Tensor],
    asked: list[Probe],
    scores: Tensor,
    bar: Progress,
) -> Made:
    from llamahome.attention import build_policy
    from llamahome.evaluation.calibration import budgets
    from llamahome.evaluation.calibration.readings import measure, train

    learned = wanted.method is Method.LEARNED
    base = PolicyConfig(
        name="learned" if learned else wanted.policy,
        budget=wanted.context,
        recent=wanted.recent,
        interval=min(64, wanted.recent),
    )
    built = build_policy(base, loaded.model)
    rungs = budgets.ladder(base, wanted.context)
    lookup = wanted.lookup_heads
    lookup = max(1, scores.numel() // LOOKUP_SHARE) if lookup is None else lookup
    floors = budgets.floors_of(scores, rungs, heads=lookup, entries=round(FLOOR * wanted.context))
    budgets.check_total(wanted.total, rungs, floors)
    if learned:
        texts = [*read, *(probe.ids for probe in asked)]
        task = bar.add_task("reading what to learn from", total=len(texts))
        train(loaded.model, built, texts, floors > rungs[0], tick=lambda: bar.advance(task))
    # A measure costs four times a reading, and a few windows are enough for it.
    measured = read[:: -(-len(read) // MEASURED)]
    task = bar.add_task("measuring the error of eviction", total=len(measured))
    errors = measure(loaded.model, built, measured, rungs, tick=lambda: bar.advance(task))
    policy = with_budgets(base, budgets.allocate(errors, rungs, wanted.total, floors))
    return Made(
        policy,
        budgets.remaining(errors, rungs, wanted.total),
        built.with_config(policy) if learned else None,
    )


def _show(made: Made, total: int, context: int) -> None:
    from rich.console import Console
    from rich.table import Table

    layers, groups = made.judged.shape
    table = Table(title=f"{made.policy.name}: {total} entries a head on average, at {context}")
    for column in ("KV head", "error or look-up", "keeps"):
        table.add_column(column, justify="right")
    for head in made.judged.flatten().argsort(descending=True)[:SHOWN].tolist():
        layer, index = divmod(head, groups)
        keeps = made.policy.budget_of(layer, index, layers)
        table.add_row(
            f"L{layer}H{index}",
            f"{float(made.judged[layer, index]):.5f}",
            "all" if keeps is None else str(keeps),
        )
    Console().print(table)
    typer.echo(f"most heads keep {made.policy.budget} entries")


def _write(loaded: LoadedModel, made: Made, output: Path) -> None:
    from llamahome.models import copy_with_policy

    if output.suffix == ".yaml":
        _write_yaml(made.policy, output)
        typer.echo(f"policy in {output}")
        return
    policy = made.weights or loaded.policy_for(made.policy)
    copy_with_policy(loaded.path, output, policy)
    typer.echo(f"model in {output}; try: llamahome generate --model {output} 'Why is it blue?'")


def _write_yaml(policy: PolicyConfig, file: Path) -> None:
    pattern = "\n".join(f"  {line}" for line in _entries(policy, ": ")) or "  {}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "# Budgets that differ by KV head, made by llamahome calibrate.\n"
        f"name: {policy.name}\nbudget: {policy.budget}\nsink: {policy.sink}\n"
        f"recent: {policy.recent}\ninterval: {policy.interval}\npattern:\n{pattern}\n"
    )


def _entries(policy: PolicyConfig, colon: str) -> list[str]:
    return [
        f"{name}{colon}{'null' if budget is None else budget}"
        for name, budget in policy.pattern.items()
    ]


def _overrides(policy: PolicyConfig) -> str:
    heads = ",".join(_entries(policy, ":"))
    numbers = " ".join(
        f"policy.{key}={getattr(policy, key)}" for key in ("budget", "recent", "interval")
    )
    return f"policy={policy.name} {numbers} '+policy.pattern={{{heads}}}'"
