"""Errors in training data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the fault and the cure."""


class BadRecord(DataError):
    """One record that cannot be used; `data.max_bad_records` says how many may be skipped."""
