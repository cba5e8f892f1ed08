"""Failures that would come again: no restart is worth it, and one line says what to do."""

from __future__ import annotations

from llamahome.config import ConfigError
from llamahome.data import DataError
from llamahome.models import ModelError


class TrainingError(Exception):
    """A run that cannot go on; the message names the cure."""


class CheckpointError(TrainingError):
    """Checkpoints of which none is intact."""


class DivergedError(TrainingError):
    """A loss or gradients that are no longer finite."""


class StoppedError(TrainingError):
    """A run that was asked to end early, and has saved what it did."""


class FullDiskError(TrainingError):
    """A run's folder that cannot be written any further."""


class WorkersFailedError(TrainingError):
    """Workers that failed more often than `trainer.max_failures` allows."""


class ExportError(TrainingError):
    """An exported model that computes something else than the trained one."""


class MemoryFullError(TrainingError):
    """Rows that do not fit into memory.

    Args:
        rows: how many were computed together.
        tokens: of each, padding counted.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__(rows, tokens)
        self.rows, self.tokens = rows, tokens

    @property
    def place(self) -> str:
        return f"{self.rows} rows of {self.tokens} tokens do not fit into memory"

    def __str__(self) -> str:
        if self.rows > 1:
            return self.place
        return (
            f"one row of {self.tokens} tokens does not fit into memory; lower data.context_length, "
            "set trainer.gradient_checkpointing=true or trainer.method=lora, or shard the model "
            "over more workers with deepspeed=zero3"
        )


FINAL = (ConfigError, DataError, ModelError, TrainingError)
