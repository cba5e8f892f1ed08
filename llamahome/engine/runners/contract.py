"""The contract between the engine and a runner, which holds every tensor of the engine."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from llamahome.cache import Slots

# Output for every token of a row, next to the logits after its last one: none, logits (a prompt's
# logprobs) or last hidden states (an embedding).
Every = Literal["logits", "hidden"] | None


@dataclass(frozen=True, kw_only=True)
class RowInput:
    """A row of a step.

    Attributes:
        slot: holds its KV entries.
        tokens: at least one id, at most the room in the slot's chunk.
        adapter: name of a LoRA adapter, None for the model itself.
        every: output for each token.
        drafted: whether its tokens after the first are a draft: the slot does not advance before
            `DraftRunner.accept`.
    """

    slot: int
    tokens: Sequence[int]
    adapter: str | None = None
    every: Every = None
    drafted: bool = False


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Result of a step.

    Attributes:
        logits: float32 (B, V), after the last token of each row.
        every: by row that asks for it, float32 (T, V) or (T, hidden).
    """

    logits: Tensor
    every: dict[int, Tensor] = field(default_factory=dict)

    def after(self, rows: Sequence[int], place: int, drafted: Container[int]) -> Tensor:
        """Return logits (len(rows), V) after token `place` of drafted rows, the last of others."""
        if any(row in drafted for row in rows):
            own = (self.every[row][place] if row in drafted else self.logits[row] for row in rows)
            return torch.stack(list(own))
        return self.logits if len(rows) == len(self.logits) else self.logits[rows]


class Runner(Protocol):
    """Forward passes of one model over its slots.

    Attributes:
        name: implementation and dtypes, for the stats.
    """

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> Slots: ...

    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """Run one step; the rows' slots advance."""


@runtime_checkable
class DraftRunner(Runner, Protocol):
    """A runner whose steps may have drafted rows."""

    def accept(self, tokens: Mapping[int, int]) -> None:
        """Advance the slots of the last step's drafted rows, after verification.

        Args:
            tokens: by slot, how many of the row's tokens stay, at least 1. The slot is then as if
                each of them had been a step of its own.
        """
