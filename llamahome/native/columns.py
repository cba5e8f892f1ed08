"""Columns of the integer tensors that describe a step to the kernels, as in csrc/step.h."""

from __future__ import annotations

from typing import NamedTuple


class RowColumns(NamedTuple):
    """A request's part of a step.

    Attributes:
        slot: index of the slot with its entries.
        tokens: number of tokens in this step.
        length: number of tokens before this step.
        max_mass: whether mass is the max over a KV group, not the sum.
        drafted: whether the tokens after the first are drafts, to be accepted later.
    """

    slot: int
    tokens: int
    length: int
    max_mass: bool
    drafted: bool


class AcceptColumns(NamedTuple):
    """Outcome of verification: the first `accepted` tokens of batch row `row` stay."""

    row: int
    accepted: int
