"""Errors about models; each message names the cure."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError

# Each config class of transformers checks its fields, or not, in its own way.
CONFIG_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class ModelError(Exception):
    """A model that cannot be used as asked."""


class ModelNotFoundError(ModelError):
    """A name that leads to no model; the message says what was tried and which names are close."""


class ModelCorruptError(ModelError):
    """A file that is missing, or has changed since the model was made."""


class PolicyFormatError(ModelError):
    """A carried policy, or its weights, that this version cannot read."""


def one_line(error: Exception) -> str:
    """Return an error of another library as one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
