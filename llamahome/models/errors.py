"""What can be wrong with a model, each with its cure in the message."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be used as asked."""


class ModelNotFoundError(ModelError):
    """A name that leads to no model; the message says what was tried and which names are close."""


class ModelCorruptError(ModelError):
    """A file that is missing or not what it was when the model was made."""


class PolicyFormatError(ModelError):
    """A config that carries a policy this version cannot read."""
