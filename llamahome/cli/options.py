"""Options that several commands share, their configs, and errors for users."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from llamahome.config import ConfigError, EngineConfig, ModelConfig
from llamahome.config.policy import CARRIED, POLICIES

Model = Annotated[
    str, typer.Option("--model", "-m", help="Embedded name, run name, folder or hub id.")
]
Policy = Annotated[
    str,
    typer.Option(
        help=f"Policy that decides which keys stay: {', '.join(POLICIES)}, or {CARRIED} (the one "
        "the model was trained under, else h2o)."
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        help="KV entries kept per head, on average; up to 1, a share of the longest text "
        "(--max-length) [default: 256, or the model's own]."
    ),
]
Sink = Annotated[int | None, typer.Option(help="First tokens that always stay [default: 4].")]
Recent = Annotated[
    int | None, typer.Option(help="Newest tokens that always stay [default: half the budget].")
]
Interval = Annotated[
    int | None, typer.Option(help="Tokens between compactions [default: 64, at most recent].")
]
Dtype = Annotated[str, typer.Option(help="auto (8 bits on a CPU), float32, bfloat16 or float16.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens generated at most.")]
MaxLength = Annotated[int, typer.Option(help="Tokens at most, prompts and answers together.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.")]

EMBEDDED = ModelConfig().name


def one_slot(max_length: int) -> EngineConfig:
    return EngineConfig(slots=1, max_length=max_length)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show an error that a user can fix as one line, without a traceback."""
    with _no_collection():
        from llamahome.data import DataError
        from llamahome.engine import EngineError
        from llamahome.models import ModelError

    try:
        yield
    except (ConfigError, DataError, EngineError, ModelError, FileNotFoundError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Import without the garbage collector, a third of the time: all that imports make stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
