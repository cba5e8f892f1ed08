"""`llamahome calibrate`: what each head needs, and a pattern of budgets for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options
from llamahome.config import ModelConfig, PolicyConfig
from llamahome.config.checks import one_of, require

if TYPE_CHECKING:
    from torch import Tensor

    from llamahome.models import LoadedModel

SHOWN = 10
METHODS = ("retrieval", "mass")


def calibrate(
    model: options.Model = options.EMBEDDED,
    budget: Annotated[
        float, typer.Option(help="Entries per KV head on average; up to 1, a share of --context.")
    ] = 0.2,
    context: Annotated[int, typer.Option(help="Tokens the budget is meant for.", min=64)] = 2048,
    method: Annotated[
        str,
        typer.Option(
            help="retrieval: heads that look things up keep everything; mass: every head gets what "
            "its attention asks for (AdaKV)."
        ),
    ] = "retrieval",
    full_heads: Annotated[
        int | None,
        typer.Option(help="Heads that keep everything [default: leave the others a quarter]."),
    ] = None,
    probes: Annotated[
        int, typer.Option(help="Synthetic prompts, or windows of the text.", min=1)
    ] = 5,
    length: Annotated[int, typer.Option(help="Tokens of a synthetic prompt.", min=64)] = 1024,
    text: Annotated[str, typer.Option(help="persuasion, northanger_abbey, pydoc, or a file.")] = (
        "pydoc"
    ),
    seed: Annotated[int, typer.Option(help="Of the prompts.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write the policy there, as YAML for conf/policy.")
    ] = None,
) -> None:
    """Find out what each KV head needs, and propose a policy that gives it to them.

    Example:

      llamahome calibrate --budget 0.2 --output conf/policy/mine.yaml
    """
    with options.plain_errors():
        require(budget > 0, "--budget", budget, "it must be above 0")
        total = round(budget * context) if budget <= 1 else round(budget)
        require(total < context, "--budget", budget, f"below --context={context}; else be dense")
        one_of("--method", method, METHODS)
        require(
            full_heads is None or method == "retrieval",
            "--full-heads",
            full_heads,
            "only --method retrieval has heads that keep everything",
        )
        loaded = _load(model)
        if method == "mass":
            scores, policy = _by_mass(loaded, text, total, context, probes)
        else:
            scores = _scores(loaded, text, length, probes, seed)
            from llamahome.evaluation.calibrate import propose

            policy = propose(
                scores, PolicyConfig(), total=total, context=context, full_heads=full_heads
            )
    _show(scores, policy, total, context, method)
    if output is not None:
        _write(policy, output)
    typer.echo(_overrides(policy))
    typer.echo(
        json.dumps({"budget": policy.budget, "pattern": policy.pattern, "scores": scores.tolist()})
    )


def _load(name: str) -> LoadedModel:
    import torch

    from llamahome.models import load_model

    return load_model(ModelConfig(name=name), device="cuda" if torch.cuda.is_available() else "cpu")


def _scores(loaded: LoadedModel, text: str, length: int, count: int, seed: int) -> Tensor:
    from rich.progress import Progress

    from llamahome.evaluation.calibrate import probes, retrieval_scores
    from llamahome.evaluation.text import load_text

    asked = probes(loaded.tokenizer, load_text(text), length=length, count=count, seed=seed)
    with Progress(transient=True) as bar:
        task = bar.add_task("looking for heads that retrieve", total=count)
        return retrieval_scores(loaded.model, asked, on_probe=lambda: bar.advance(task))


def _by_mass(
    loaded: LoadedModel, text: str, total: int, context: int, count: int
) -> tuple[Tensor, PolicyConfig]:
    """The mass that each head would leave behind at an even budget, and the policy."""
    import torch
    from rich.progress import Progress

    from llamahome.evaluation.calibrate import mass_curves, share_by_mass
    from llamahome.evaluation.text import load_text

    base = PolicyConfig()
    ids = loaded.tokenizer.encode(load_text(text), verbose=False)[: count * context]
    require(len(ids) == count * context, "--probes", count, f"the text has {len(ids)} tokens")
    with Progress(transient=True) as bar:
        task = bar.add_task("measuring attention", total=count)
        curves = mass_curves(
            loaded.model,
            torch.tensor(ids).view(count, context),
            sink=base.sink,
            recent=max(1, total // 4),
            on_window=lambda: bar.advance(task),
        )
    left = curves[..., total - base.sink - total // 4 :].sum(dim=-1)
    return left, share_by_mass(curves, base, total=total)


def _show(scores: Tensor, policy: PolicyConfig, total: int, context: int, method: str) -> None:
    from rich.console import Console
    from rich.table import Table

    full = sum(budget is None for budget in policy.pattern.values())
    of_mass = method == "mass"
    table = Table(title=f"{full} of {scores.numel()} KV heads keep everything")
    measured = "attention beyond an even share" if of_mass else "attention to what it repeats"
    for column in ("KV head", measured, "keeps"):
        table.add_column(column, justify="right")
    groups = scores.shape[1]
    for head in scores.flatten().argsort(descending=True)[:SHOWN].tolist():
        name = f"L{head // groups}H{head % groups}"
        keeps = policy.pattern.get(name, policy.budget)
        table.add_row(
            name, f"{float(scores.flatten()[head]):.3f}", "all" if keeps is None else str(keeps)
        )
    Console().print(table)
    if not of_mass:
        typer.echo(
            f"{policy.budget} entries for the others: {total} a head on average, "
            f"at {context} tokens"
        )


def _write(policy: PolicyConfig, file: Path) -> None:
    pattern = "\n".join(f"  {line}" for line in _entries(policy, ": ")) or "  {}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "# What each KV head keeps, where not the budget; proposed by llamahome calibrate.\n"
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
