"""An export in each format: what it needs, checked first, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from train.errors import ExportError
from train.publish.options import DTYPES, Options
from train.publish.source import Source, adapter_base_id

Write = Callable[[Path], float]


def check(source: Source, options: Options) -> Write:
    """Return a function that fills a folder and says what rounding cost, in nats.

    Raises:
        ExportError: for a source that cannot be written in this format.
    """
    return CHECKS[options.format](source, options)


def _merged(source: Source, options: Options) -> Write:
    from train.publish.weights import write_merged

    stored = str(source.found.config.dtype).removeprefix("torch.")
    dtype = options.dtype or (stored if stored in DTYPES else "float32")
    return partial(write_merged, source, dtype)


def _adapter(source: Source, options: Options) -> Write:
    from train.publish.weights import write_adapter

    if source.adapter is None:
        raise ExportError(f"--format adapter: {source.name} has no adapter; {_cure(source)}")
    base = options.base_model or adapter_base_id(source)
    if base is None:
        raise ExportError(
            f"--format adapter: the base {source.found.chain[1]} is on this machine alone; give "
            "--base-model ORG/NAME, the hub id under which others find it, or use --format merged"
        )
    return partial(write_adapter, source, base)


def _gguf(source: Source, options: Options) -> Write:
    from train.publish.gguf_file import check_gguf, write_gguf

    tokenizer, quantization = check_gguf(source, options.allow_dense), options.quantization or "f16"

    def fill(folder: Path) -> float:
        file = folder / f"{source.name}-{quantization}.gguf"
        return write_gguf(source, tokenizer, quantization, file)

    return fill


def _cure(source: Source) -> str:
    run = source.run
    if run is None or run.value("trainer.method") != "lora":
        return "use --format merged"
    return (
        "this run is of a version that kept the merged weights alone; resume it with "
        f"trainer.run_name={run.name}, and it exports both, or use --format merged"
    )


CHECKS = {"merged": _merged, "adapter": _adapter, "gguf": _gguf}
