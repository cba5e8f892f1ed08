"""Options of an export, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.models.hub import is_hub_id
from train.errors import ExportError

FORMATS = ("merged", "adapter", "gguf")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices of a user.

    Attributes:
        format: one of FORMATS.
        dtype: of merged weights; None takes the base's.
        quantization: of a GGUF file; None takes f16.
        allow_dense: lets llama.cpp serve a model without the policy that it was trained under.
        base_model: hub id of the base; None takes the one that is known.
        push: hub id to upload to.
        public: makes the upload visible to all.
    """

    format: str
    dtype: str | None = None
    quantization: str | None = None
    allow_dense: bool = False
    base_model: str | None = None
    push: str | None = None
    public: bool = False


def checked(options: Options) -> Options:
    """Return the options.

    Raises:
        ExportError: for an unknown value, or an option that goes with another format.
    """
    _one_of("--format", options.format, FORMATS)
    for name, value, known, format in (
        ("--dtype", options.dtype, DTYPES, "merged"),
        ("--quantization", options.quantization, QUANTIZATIONS, "gguf"),
    ):
        if value is not None:
            _one_of(name, value, known)
            _goes_with(name, value, options.format, format)
    if options.allow_dense:
        _goes_with("--allow-dense", None, options.format, "gguf")
    if options.public and options.push is None:
        raise ExportError("--public goes with --push ORG/NAME; give both, or leave it out")
    for name, value in (("--push", options.push), ("--base-model", options.base_model)):
        if value is not None and not is_hub_id(value):
            raise ExportError(f"{name}={value!r} is no hub id; give ORGANISATION/NAME")
    return options


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"{name}={value!r}: choose one of {', '.join(known)}")


def _goes_with(name: str, value: str | None, format: str, other: str) -> None:
    if format != other:
        given = name if value is None else f"{name}={value}"
        raise ExportError(f"{given} goes with --format {other}, not {format}; leave it out")
