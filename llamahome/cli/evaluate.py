"""`llamahome eval`: what a policy costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamahome.cli import options
from llamahome.config import ModelConfig, PolicyConfig

app = typer.Typer(help="Measure what an eviction policy costs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `perplexity` a command of its own name while it is the only one."""


@app.command()
def perplexity(
    model: options.Model = options.EMBEDDED,
    text: Annotated[
        Path | None,
        typer.Option(help="A text file [default: Python's own language reference].", exists=True),
    ] = None,
    policy: options.Policy = "carried",
    budget: options.Budget = None,
    sink: options.Sink = 4,
    recent: options.Recent = None,
    interval: options.Interval = None,
    window: Annotated[int, typer.Option(help="Tokens read at a time.", min=2)] = 2048,
    windows: Annotated[int, typer.Option(help="How many, from the start of the text.", min=1)] = 4,
    dtype: options.Dtype = "auto",
) -> None:
    """Perplexity of a text under a policy, beside dense attention.

    Example:

      llamahome eval perplexity --budget 205 --windows 2
    """
    with options.plain_errors():
        import torch

        from llamahome.config.checks import require
        from llamahome.engine.text_engine import choose_policy
        from llamahome.models import load_model

        wanted = options.policy_config(policy, budget, sink, recent, interval)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_model(ModelConfig(name=model, dtype=dtype), device=device)
        ids = torch.tensor(loaded.tokenizer.encode(_read(text), verbose=False)[: window * windows])
        require(len(ids) >= window, "--window", window, f"the text has only {len(ids)} tokens")
        chosen = choose_policy(wanted, loaded.policy)
        dense = PolicyConfig(name="full", budget=None, interval=chosen.interval)
        rows = [_measure(loaded.model, ids, p, window) for p in (dense, chosen)]
    _show(rows, model)


def _read(text: Path | None) -> str:
    if text is not None:
        return text.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _measure(model, ids, policy: PolicyConfig, window: int):  # type: ignore[no-untyped-def]
    from rich.progress import Progress

    from llamahome.evaluation import perplexity as measure

    with Progress(transient=True) as bar:
        task = bar.add_task(policy.name, total=len(ids) // window)
        result = measure(model, ids, policy, window=window, on_window=lambda: bar.advance(task))
    return policy, result


def _show(rows, model: str) -> None:  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Perplexity of {model}, {rows[0][1].tokens} tokens")
    for column in ("policy", "budget", "perplexity", "over dense", "KV MiB"):
        table.add_column(column, justify="right")
    dense = rows[0][1].perplexity
    for policy, result in rows:
        table.add_row(
            policy.name,
            "all" if policy.budget is None else str(policy.budget),
            f"{result.perplexity:.3f}",
            f"{result.perplexity / dense - 1:+.1%}",
            f"{result.kv_bytes / 2**20:.1f}",
        )
    Console().print(table)
