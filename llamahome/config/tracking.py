"""Destinations of a run's curves."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import one_of


@dataclass(kw_only=True)
class TrackingConfig:
    """wandb and TensorBoard.

    Attributes:
        wandb: `offline` writes to the run's folder, `online` also uploads, `disabled` does neither.
        project, entity: wandb's names.
        tensorboard: write event files to the run's folder.
    """

    wandb: str = "offline"
    project: str = "llamahome"
    entity: str | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        one_of("tracking.wandb", self.wandb, ("offline", "online", "disabled"))
