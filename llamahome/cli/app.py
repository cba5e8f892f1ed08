"""The command `llamahome` with its subcommands."""

from __future__ import annotations

from typing import Literal

import typer

from llamahome.cli import (
    calibrate,
    chat,
    evaluate,
    generate,
    handover,
    keys,
    lm_eval,
    models,
    token_cache,
)
from llamahome.logs import configure_logging

app = typer.Typer(
    name="llamahome",
    help=(
        "Run Llama-family models from a KV cache of fixed size.\n\n"
        "Start with:  llamahome generate 'What is the capital of France?'\n\n"
        "The embedded model needs no download. Any --model takes its name, a fine-tuned run, "
        "a Hugging Face folder or a hub id (see: llamahome models list)."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _start(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does."),
    log_format: Literal["text", "json"] = typer.Option("text", help="Lines of the log."),
) -> None:
    configure_logging("INFO" if verbose else "WARNING", log_format)


data = typer.Typer(help="Look at training data.", no_args_is_help=True)
data.command(context_settings=handover.PASS_ON)(handover.inspect)
data.add_typer(token_cache.app, name="cache")

app.command()(generate.generate)
app.command()(chat.chat)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command()(calibrate.calibrate)
app.command("eval", context_settings=handover.PASS_ON)(evaluate.evaluate)
app.command("lm_eval", context_settings=handover.PASS_ON)(lm_eval.lm_eval)
app.command(context_settings=handover.PASS_ON)(handover.train)
app.command(context_settings=handover.PASS_ON)(handover.serve)
app.command(context_settings=handover.PASS_ON)(handover.runs)
app.command(context_settings=handover.PASS_ON)(handover.export)
app.add_typer(data, name="data")
