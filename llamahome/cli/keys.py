"""`llamahome keys`: API keys of the endpoint."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from llamahome.keys import KeyFile, KeysError, Role, default_file

app = typer.Typer(
    help="Create, list and revoke API keys of the endpoint. Serve with serve.keys_file=FILE.",
    no_args_is_help=True,
)

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_S = 100 * 365 * SECONDS["d"]

File = Annotated[
    Path | None,
    typer.Option(
        "--file", help="Keys file [default: $LLAMAHOME_KEYS_FILE, else in your config folder]."
    ),
]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Name of its owner, for the list and the audit log.")],
    role: Annotated[str, typer.Option(help="user, or admin: also /metrics and priority.")] = "user",
    expires: Annotated[str | None, typer.Option(help="After so long: 12h, 30d, 8w.")] = None,
    models: Annotated[str | None, typer.Option(help="Models it may use: a,b [default: all].")] = (
        None
    ),
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Most tokens, prompts and answers together.")
    ] = None,
    file: File = None,
) -> None:
    """Create a key and print it: it is shown this once, and only its SHA-256 is kept."""
    keys = KeyFile(file or default_file())
    with _plain_errors():
        key, secret = keys.create(
            name,
            role=cast(Role, role),
            expires=None if expires is None else int(time.time()) + _seconds(expires),
            models=None if models is None else tuple(m.strip() for m in models.split(",")),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    typer.echo(secret)
    typer.echo(
        f"key {key.id} of {key.name} ({key.role}); it is not shown again\n"
        f"serve with: python -m serve serve.keys_file={keys.path.resolve()}",
        err=True,
    )


@app.command("list")
def list_keys(file: File = None) -> None:
    """List all keys, with what they may do; revoked and expired ones, too."""
    from rich.console import Console
    from rich.table import Table

    keys = KeyFile(file or default_file())
    with _plain_errors():
        found = keys.read()
    table = Table(title=str(keys.path))
    for column in ("id", "name", "role", "state", "expires", "models", "req/min", "tok/min"):
        table.add_column(column, overflow="fold")
    now = time.time()
    for key in found:
        table.add_row(
            key.id,
            key.name,
            key.role,
            key.state(now),
            "never" if key.expires is None else f"{datetime.fromtimestamp(key.expires):%F}",
            "all" if key.models is None else ", ".join(key.models),
            _limit(key.requests_per_minute),
            _limit(key.tokens_per_minute),
        )
    Console().print(table)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id or name of the key.")], file: File = None
) -> None:
    """Revoke a key for ever; a running endpoint refuses it from its next request on."""
    with _plain_errors():
        revoked = KeyFile(file or default_file()).revoke(key)
    typer.echo(f"key {revoked.id} of {revoked.name} is revoked")


def _seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhdw])", duration)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise KeysError(
            f"expires={duration!r} is not allowed: give a number and s, m, h, d or w, such as 30d, "
            "up to 100 years"
        )
    return seconds


def _limit(per_minute: int | None) -> str:
    return "-" if per_minute is None else f"{per_minute:,}"


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except (KeysError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
