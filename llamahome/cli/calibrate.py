"""`llamahome calibrate`: which heads retrieve, and a pattern of budgets for them."""

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
    length: Annotated[int, typer.Option(help="Tokens of a prompt.", min=64)] = 1024,
    text: Annotated[str, typer.Option(help="persuasion, northanger_abbey, pydoc, or a file.")] = (
        "pydoc"
    ),
    seed: Annotated[int, typer.Option(help="Of the prompts.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write the policy there, as YAML for conf/policy.")
    ] = None,
) -> None:
    """Find the heads that retrieve, and propose a policy that lets them keep everything.

    Example:

      llamahome calibrate --budget 0.2 --output conf/policy/mine.yaml
    """
    with options.plain_errors():
        require(budget > 0, "--budget", budget, "it must be above 0")
        total = round(budget * context) if budget <= 1 else round(budget)
        require(total < context, "--budget", budget, f"below --context={context}; else be dense")
        from llamahome.evaluation.calibrate import propose

        scores = _scores(model, text, length, probes, seed)
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


def _scores(name: str, text: str, length: int, count: int, seed: int) -> Tensor:
    import torch
    from rich.progress import Progress

    from llamahome.evaluation.calibrate import probes, retrieval_scores
    from llamahome.evaluation.text import load_text
    from llamahome.models import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(ModelConfig(name=name), device=device)
    asked = probes(loaded.tokenizer, load_text(text), length=length, count=count, seed=seed)
    with Progress(transient=True) as bar:
        task = bar.add_task("looking for heads that retrieve", total=count)
        return retrieval_scores(loaded.model, asked, on_probe=lambda: bar.advance(task))


def _show(scores: Tensor, policy: PolicyConfig, total: int, context: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Heads that retrieve: {len(policy.pattern)} of {scores.numel()} stay full")
    for column in ("KV head", "attention to what it repeats", "keeps"):
        table.add_column(column, justify="right")
    groups = scores.shape[1]
    for head in scores.flatten().argsort(descending=True)[:SHOWN].tolist():
        name = f"L{head // groups}H{head % groups}"
        keeps = "all" if name in policy.pattern else str(policy.budget)
        table.add_row(name, f"{float(scores.flatten()[head]):.3f}", keeps)
    Console().print(table)
    typer.echo(
        f"{policy.budget} entries for the others: {total} a head on average, at {context} tokens"
    )


def _write(policy: PolicyConfig, file: Path) -> None:
    pattern = "\n".join(f"  {name}: null" for name in policy.pattern) or "  {}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "# Heads that retrieve keep everything; proposed by llamahome calibrate.\n"
        f"name: {policy.name}\nbudget: {policy.budget}\nsink: {policy.sink}\n"
        f"recent: {policy.recent}\ninterval: {policy.interval}\npattern:\n{pattern}\n"
    )
    typer.echo(f"policy in {file}")


def _overrides(policy: PolicyConfig) -> str:
    heads = ",".join(f"{name}:null" for name in policy.pattern)
    numbers = " ".join(
        f"policy.{key}={getattr(policy, key)}" for key in ("budget", "recent", "interval")
    )
    return f"{numbers} '+policy.pattern={{{heads}}}'"
