"""TensorBoard's curves, read back."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)


def logged(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Return the steps and values of one curve, in the order they were written."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars(name)
    return [(event.step, event.value) for event in events]
