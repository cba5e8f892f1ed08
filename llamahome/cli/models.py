"""`llamahome models`: the models at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options

if TYPE_CHECKING:
    from llamahome.models import ModelInfo

app = typer.Typer(help="List, describe, verify and remove models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Embedded name, run name, folder or hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


@app.command("list")
def list_models() -> None:
    """List the embedded model, fine-tuned runs and downloaded models."""
    from rich.console import Console
    from rich.table import Table

    with options.plain_errors():
        from llamahome.models import ModelManager

        infos = ModelManager().list()
    table = Table()
    for column in ("name", "kind", "parameters", "context", "policy"):
        table.add_column(column, justify="right" if column in ("parameters", "context") else "left")
    for info in infos:
        table.add_row(
            info.name,
            info.kind,
            f"{info.parameters / 1e6:,.0f} M",
            f"{info.context_length:,}",
            _policy(info),
        )
    Console().print(table)


@app.command()
def describe(
    name: Name = options.EMBEDDED,
    revision: Revision = None,
    budget: Annotated[
        float | None,
        typer.Option(help="KV entries per head of one slot; up to 1, a share of the context."),
    ] = None,
) -> None:
    """Show a model's size, shape, KV bytes per token, and memory at a budget."""
    from rich.console import Console
    from rich.table import Table

    with options.plain_errors():
        from llamahome.models import ModelManager

        info = ModelManager().describe(name, revision, budget=budget)
    table = Table(show_header=False, title=info.name)
    for label, text in (
        ("kind", info.kind),
        ("folder", str(info.path)),
        ("parameters", f"{info.parameters:,}"),
        ("dtype on disk", info.dtype),
        ("context", f"{info.context_length:,} tokens"),
        (
            "shape",
            f"{info.layers} layers, {info.kv_heads} KV heads of {info.head_dim} for {info.heads}",
        ),
        ("KV per token", f"{info.kv_bytes_per_token:,} B"),
        (
            "weights + one slot",
            f"{info.memory_bytes / 2**20:,.0f} MiB at {info.slot_tokens:,} entries",
        ),
        ("policy", _policy(info)),
    ):
        table.add_row(label, text)
    Console().print(table)


@app.command()
def verify(name: Name = options.EMBEDDED, revision: Revision = None) -> None:
    """Compare a model's files with the checksums recorded when it was made."""
    with options.plain_errors():
        from llamahome.models import ModelManager

        files = ModelManager().verify(name, revision)
    typer.echo(f"{name}: {files} files are as they were made")


@app.command()
def remove(
    name: Name,
    revision: Revision = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model from the cache; a run is deleted with its checkpoints."""
    if not yes:
        typer.confirm(f"Delete {name} and everything that belongs to it?", abort=True)
    with options.plain_errors():
        from llamahome.models import ModelManager

        ModelManager().remove(name, revision)
    typer.echo(f"{name} is removed")


def _policy(info: ModelInfo) -> str:
    if info.policy is None:
        return "none"
    return f"{info.policy.name}, budget {info.policy_entries}"
