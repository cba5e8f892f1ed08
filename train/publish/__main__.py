"""`python -m train.publish`: export a trained model for others."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging as transformers_logging

from llamahome.logs import configure_logging
from llamahome.models import ModelManager
from llamahome.models.checksums import write_checksums
from train.errors import FINAL, ExportError
from train.progress import plain_console
from train.publish.card import write_card
from train.publish.hub import check_push, push
from train.publish.news import say
from train.publish.options import Options, checked
from train.publish.source import find_source
from train.publish.write import check
from train.runs.folder import RunsError

REFUSED = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's name, or a model's folder or hub id.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="merged (safetensors), adapter (a PEFT folder) or gguf (a file for llama.cpp)."
        ),
    ] = "merged",
    output: Annotated[
        Path | None, typer.Option(help="Folder to make [default: ./NAME-FORMAT].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of merged: float32, bfloat16 or float16 [default: the base's]."),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of gguf: f32, f16, bf16 or q8_0 [default: f16].")
    ] = None,
    allow_dense: Annotated[
        bool, typer.Option("--allow-dense", help="Of gguf: let llama.cpp serve without a policy.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base, where it is not known.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence for the model card, such as apache-2.0.")
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Upload to the Hugging Face hub."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Of --push: visible to all [default: private].")
    ] = False,
    runs: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder of runs [default: `runs` in the cache directory]."),
    ] = None,
) -> None:
    """Export a trained model with its tokenizer and a model card.

    What was written is read back and compared with the trained model before the folder appears.
    """
    with _plain_errors():
        options = checked(
            Options(
                format=format,
                dtype=dtype,
                quantization=quantization,
                allow_dense=allow_dense,
                base_model=base_model,
                push=push_to,
                public=public,
            )
        )
        manager = ModelManager()
        runs_dir = manager.runs_dir if runs is None else runs.expanduser()
        source = find_source(model, runs_dir, manager, base_model)
        target = (output or Path(f"{source.name}-{format}")).expanduser().absolute()
        if target.exists():
            raise ExportError(f"--output={target} exists; remove it, or name another folder")
        write = check(source, options)
        api = None if push_to is None else check_push(push_to, public=public)
        with _new_folder(target) as folder:
            gap = write(folder)
            say("writing the model card")
            write_card(
                source, format, folder, name=push_to or target.name, license=license, gap=gap
            )
            write_checksums(folder)
        plain_console().print(f"exported to {target}")
        if api is not None and push_to is not None:
            say(f"uploading to {push_to}")
            plain_console().print(f"uploaded to {push(api, push_to, target, public=public)}")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block is done, or else goes."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show an error that a user can fix as one line."""
    try:
        yield
    except (*FINAL, RunsError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        raise typer.Exit(REFUSED) from error


if __name__ == "__main__":
    configure_logging("WARNING")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns when it has to look for one
    transformers_logging.disable_progress_bar()  # a bar for each shard that is read
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # by PEFT
    app(prog_name="llamahome export")
