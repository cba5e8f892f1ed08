"""`llamahome calibrate`: a pattern of budgets for the heads that retrieve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options
from llamahome.config import ModelConfig, PolicyConfig
from llamahome.config.checks import require

if TYPE_CHECKING:
    from torch import Tensor

    from llamahome.models import LoadedModel

SHOWN = 10


def calibrate(
    model: options.Model = options.EMBEDDED,
    budget: Annotated[
        float, typer.Option(help="Entries per KV head on average; up to 1, a share of --context.")
    ] = 0.2,
    context: Annotated[int, typer.Option(help="Tokens the budget is meant for.", min=64)] = 2048,
    full_heads: Annotated[
        int | None,
        typer.Option(help="Heads that keep everything [default: leave the others a quarter]."),
    ] = None,
    probes: Annotated[int, typer.Option(help="Synthetic prompts.", min=1)] = 5,
    length: Annotated[int, typer.Option(help="Tokens of a synthetic prompt.", min=64)] = 1024,
    text: Annotated[str, typer.Option(help="persuasion, northanger_abbey, pydoc, or a file.")] = (
        "pydoc"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write the policy there, as YAML for conf/policy.")
    ] = None,
) -> None:
    """Find the KV heads that look things up, and propose a policy that lets them keep everything.

    Example:

      llamahome calibrate --budget 0.2 --output conf/policy/mine.yaml
    """
    with options.plain_errors():
        require(budget > 0, "--budget", budget, "it must be above 0")
        total = round(budget * context) if budget <= 1 else round(budget)
        require(total < context, "--budget", budget, f"below --context={context}; else be dense")
        from llamahome.evaluation.calibration.retrieval import propose

        scores = _scores(_load(model), text, length, probes, seed)
        policy = propose(
            scores, PolicyConfig(), total=total, context=context, full_heads=full_heads
        )
    _show(scores, policy, total, context)
    if output is not None:
        _write(policy, output)
    typer.echo(_overrides(policy))
    typer.echo(
        json.dumps({"budget": policy.budget, "pattern": policy.pattern, "scores": scores.tolist()})
    )


def _load(name: str) -> LoadedModel:
    from llamahome.engine.text.text_engine import torch_device
    from llamahome.models import load_model

    return load_model(ModelConfig(name=name), device=torch_device("auto"))


def _scores(loaded: LoadedModel, text: str, length: int, count: int, seed: int) -> Tensor:
    from rich.progress import Progress

    from llamahome.evaluation.calibration.retrieval import probes, retrieval_scores
    from llamahome.evaluation.text import load_text

    asked = probes(
        loaded.tokenizer, load_text(text, field="--text"), length=length, count=count, seed=seed
    )
    with Progress(transient=True) as bar:
        task = bar.add_task("looking for heads that retrieve", total=count)
        return retrieval_scores(loaded.model, asked, on_probe=lambda: bar.advance(task))


def _show(scores: Tensor, policy: PolicyConfig, total: int, context: int) -> None:
    from rich.console import Console
    from rich.table import Table

    full = sum(budget is None for budget in policy.pattern.values())
    table = Table(title=f"{full} of {scores.numel()} KV heads keep everything")
    for column in ("KV head", "attention to what it repeats", "keeps"):
        table.add_column(column, justify="right")
    groups = scores.shape[1]
    for head in scores.flatten().argsort(descending=True)[:SHOWN].tolist():
        name = f"L{head // groups}H{head % groups}"
        keeps = policy.pattern.get(name, policy.budget)
        table.add_row(
            name, f"{float(scores.flatten()[head]):.3f}", "all" if keeps is None else str(keeps)
        )
    Console().print(table)
    typer.echo(
        f"{policy.budget} entries for the others: {total} a head on average, at {context} tokens"
    )


def _write(policy: PolicyConfig, file: Path) -> None:
    pattern = "\n".join(f"  {line}" for line in _entries(policy, ": ")) or "  {}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "# KV heads that keep everything; proposed by llamahome calibrate.\n"
        f"name: {policy.name}\nbudget: {policy.budget}\nsink: {policy.sink}\n"
        f"recent: {policy.recent}\ninterval: {policy.interval}\npattern:\n{pattern}\n"
    )
    typer.echo(f"policy in {file}")


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
    return f"{numbers} '+policy.pattern={{{heads}}}'"
