"""What is wrong with training data, said so that it can be put right."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message says where it is, what is wrong and what would do."""
