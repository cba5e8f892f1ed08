"""Commands of the repository's Hydra applications: train, serve, data inspect; and runs, export."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from llamahome.config import ConfigError, checkout

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Fine-tune a model under the policy that will serve it (Ray Train, DeepSpeed).

    Takes Hydra overrides: llamahome train experiment=quickstart trainer.steps=100
    """
    _hand_over("train", context.args)


def serve(context: typer.Context) -> None:
    """Serve a model behind an OpenAI-compatible endpoint (Ray Serve).

    Takes Hydra overrides: llamahome serve model.name=my-run serve.port=8001

    llamahome serve promote RUN replaces the model of a running endpoint by a finished run.
    """
    _hand_over("serve", context.args)


def inspect(context: typer.Context) -> None:
    """Show the rows that a run would train on, with the learned tokens marked.

    Takes a file or Hydra overrides: llamahome data inspect chats.jsonl data.train_on=last
    """
    _hand_over("train.inspect", context.args)


def runs(context: typer.Context) -> None:
    """List, show, compare and remove training runs.

    llamahome runs list | show RUN | compare RUN RUN... | remove RUN
    """
    _hand_over("train.runs", context.args)


def export(context: typer.Context) -> None:
    """Export a trained model: merged weights, adapter or GGUF, a model card, the hub.

    llamahome export RUN --format gguf --quantization q8_0
    """
    _hand_over("train.publish", context.args)


def _hand_over(module: str, arguments: list[str]) -> NoReturn:
    try:
        root = checkout()
    except ConfigError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
