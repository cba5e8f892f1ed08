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

      llamahome lm_eval --tasks niah_single_1,ruler_vt --metadata 'max_seq_lengths=[4096]'
    """
    arguments = list(context.args)
    if "--model" not in arguments and arguments[:1] != ["ls"]:
        arguments += ["--model", NAME]
    with options.plain_errors():
        register()
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        sys.argv = ["lm_eval", *arguments]
        setup_logging()
        harness = HarnessCLI()
        parsed = harness.parse_args()
        # A file of --config may name another model, so it names its tokenizer, too.
        if getattr(parsed, "model", None) == NAME and parsed.config is None:
            parsed.metadata = {"tokenizer": _folder(parsed.model_args)} | (parsed.metadata or {})
        harness.execute(parsed)


def _folder(model_args: dict[str, str] | None) -> str:
    """Return the folder of the model, whose tokenizer tasks of a given length measure with.

    RULER loads it by name with transformers, which does not know embedded names and runs.
    """
    from llamahome.models import ModelManager

    return str(ModelManager().resolve((model_args or {}).get("pretrained", options.EMBEDDED)))


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
