"""`llamahome data cache`: the tokenised records at hand."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options

if TYPE_CHECKING:
    from llamahome.data import TokenCache

app = typer.Typer(help="List, measure and remove tokenised records.", no_args_is_help=True)

Folder = Annotated[
    str | None,
    typer.Option("--dir", help="data.cache_dir of the runs [default: `tokens` in the cache]."),
]


@app.command("list")
def list_tables(folder: Folder = None) -> None:
    """List what is tokenised, the last used first."""
    from rich.console import Console
    from rich.table import Table

    entries = _cache(folder).entries()
    table = Table()
    table.add_column("source", overflow="fold")
    for column in ("records", "tokens", "MiB", "last used"):
        table.add_column(column, justify="right")
    for entry in entries:
        table.add_row(
            entry.source,
            f"{entry.rows:,}",
            f"{entry.tokens:,}",
            _mebibytes(entry.nbytes),
            f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
        )
    Console().print(table)


@app.command()
def size(folder: Folder = None) -> None:
    """Show how much the folder holds, and where it is."""
    cache = _cache(folder)
    entries = cache.entries()
    nbytes = sum(entry.nbytes for entry in entries)
    typer.echo(f"{_mebibytes(nbytes)} MiB of {len(entries)} sources in {cache.folder}")


@app.command()
def clear(
    folder: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove them all; runs go on with what they have open, and the next one tokenises again."""
    cache = _cache(folder)
    if not yes:
        typer.confirm(f"Remove all tokenised records in {cache.folder}?", abort=True)
    with options.plain_errors():
        removed = cache.clear()
    typer.echo(f"{removed} sources are removed")


def _cache(folder: str | None) -> TokenCache:
    with options.plain_errors():
        from llamahome.config import DataConfig
        from llamahome.data import TokenCache

        return TokenCache.of(folder, DataConfig().cache_bytes)


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f}"
