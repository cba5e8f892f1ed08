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


FINAL = (ConfigError, DataError, ModelError, TrainingError)
