"""Errors in training data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the fault and the cure."""
