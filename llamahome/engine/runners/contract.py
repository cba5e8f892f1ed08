"""What the engine asks of a runner: every tensor of the engine is behind one."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.cache import Slots

# What a row is asked for beside the logits after its last token: nothing, or of each of its tokens
# the logits (a prompt's logprobs) or the last hidden state (an embedding).
Every = Literal["logits", "hidden"] | None


@dataclass(frozen=True, kw_only=True)
class RowInput:
    """A row of a step.

    Attributes:
        slot: where its entries live.
        tokens: at least one id, at most the room in the slot's chunk.
        adapter: name of a LoRA adapter, None for the model as it is.
        every: what is wanted of each token.
        drafted: whether its tokens after the first are guesses: the slot does not advance before
            `DraftRunner.accept` says how many were right.
    """

    slot: int
    tokens: Sequence[int]
    adapter: str | None = None
    every: Every = None
    drafted: bool = False


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a step gives.

    Attributes:
        logits: float32 (B, V), after the last token of each row.
        every: by row, where it was asked for: float32 (T, V) or (T, hidden).
    """

    logits: Tensor
    every: dict[int, Tensor] = field(default_factory=dict)

    def after(self, rows: Sequence[int], place: int, drafted: Container[int]) -> Tensor:
        """Logits (len(rows), V) after token `place` of drafted rows and the last of others."""
        if any(row in drafted for row in rows):
            own = (self.every[row][place] if row in drafted else self.logits[row] for row in rows)
            return torch.stack(list(own))
        return self.logits if len(rows) == len(self.logits) else self.logits[rows]


class Runner(Protocol):
    """Runs token ids through the model and keeps what they leave in the slots.

    Attributes:
        name: how it computes, for the stats.
    """

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> Slots: ...

    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """One step; the rows' slots advance."""


@runtime_checkable
class DraftRunner(Runner, Protocol):
    """A runner whose steps may have drafted rows."""

    def accept(self, kept: Mapping[int, int]) -> None:
        """After a step: by slot of each drafted row, how many of its tokens stay, at least 1.

        The slot is then as if each of them had been a step of its own.
        """


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model that PEFT has put adapters into, or the model itself."""
    if isinstance(model, PeftModel):
        return cast(PreTrainedModel, model.get_base_model())
    return model
