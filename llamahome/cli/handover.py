"""`llamahome train` and `llamahome serve`: over to the Hydra applications of the repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Fine-tune a model under the policy that will serve it (Ray Train, DeepSpeed).

    Takes Hydra overrides: llamahome train experiment=quickstart trainer.steps=100
    """
    _hand_over("train", context.args)


def serve(context: typer.Context) -> None:
    """Serve a model behind an OpenAI-compatible endpoint (Ray Serve).

    Takes Hydra overrides: llamahome serve model.name=my-run serve.port=8001
    """
    _hand_over("serve", context.args)


def _hand_over(package: str, arguments: list[str]) -> NoReturn:
    root = Path(__file__).resolve().parents[2]
    if not (root / package / "__main__.py").is_file():
        typer.secho(
            f"error: {package}/ is part of the repository, not of the installed package; "
            "clone the repository and run `make install` there",
            fg="red",
            err=True,
        )
        raise typer.Exit(2)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", package, *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
