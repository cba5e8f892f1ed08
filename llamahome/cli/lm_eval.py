"""`llamahome lm_eval`: tasks of lm-evaluation-harness, answered by the engine that serves."""

from __future__ import annotations

import sys

import typer

from llamahome.cli import options
from llamahome.config import ConfigError

NAME = "llamahome"


def lm_eval(context: typer.Context) -> None:
    """Run tasks of lm-evaluation-harness through a KV cache of fixed size.

    Takes lm_eval's own arguments; --model llamahome is added to its models and the default:

      llamahome lm_eval --model_args pretrained=my-run,policy=h2o,budget=512 --tasks hellaswag
    """
    arguments = list(context.args)
    if "--model" not in arguments and arguments[:1] != ["ls"]:
        arguments += ["--model", NAME]
    with options.plain_errors():
        register()
        from lm_eval.__main__ import cli_evaluate

        sys.argv = ["lm_eval", *arguments]
        cli_evaluate()


def register() -> None:
    """Make `llamahome` a model that lm_eval knows.

    Raises:
        ConfigError: where lm_eval is not installed.
    """
    try:
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness is not installed ({error}); pip install 'llamahome[harness]'"
        ) from error
    if NAME not in model_registry:
        model_registry.register(NAME, target="llamahome.evaluation.lm_eval:LlamaHomeLM")
