"""`python -m serve promote RUN`: let a running endpoint serve a finished run from now on."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from serve.http.errors import EndpointError

# A replica may have to load tens of gigabytes.
TIMEOUT_S = 3600.0


def promote(
    run: Annotated[
        str,
        typer.Argument(
            help="A finished run, a folder below serve.model_dirs, or the model "
            "that the endpoint was started with (its name in /v1/models)."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Client's name of the model to replace; else the main one.")
    ] = None,
    url: Annotated[str, typer.Option(help="Address of the endpoint.")] = "http://127.0.0.1:8000",
) -> None:
    """Replace a served model by a finished run, with no request lost.

    Each replica loads the run next to what it serves. Then new requests go to the run; answers in
    progress end as they began. LLAMAHOME_API_KEY, an admin's key, is sent if it is set.
    """
    try:
        promoted = post(f"{url.rstrip('/')}/admin/promote", {"run": run, "model": model})
    except EndpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{promoted['model']} is now {promoted['root']} ({promoted['system_fingerprint']})")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request to an endpoint and return its answer.

    Raises:
        EndpointError: when there is no endpoint, or it refuses.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("LLAMAHOME_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as refusal:
        raise EndpointError(_message(refusal)) from refusal
    except (OSError, ValueError) as error:
        raise EndpointError(f"no endpoint answers at {url}: {error}; give its --url") from error
    return found


def _message(refusal: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(refusal)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {refusal.code} from {refusal.url}"


def main(arguments: list[str]) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(promote)
    app(arguments, prog_name="llamahome serve promote")
