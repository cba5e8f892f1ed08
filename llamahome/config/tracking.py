"""Where a run's curves go."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import one_of


@dataclass(kw_only=True)
class TrackingConfig:
    """wandb and TensorBoard.

    Attributes:
        wandb: `offline` writes to the run's folder, `online` uploads, `disabled` does neither.
        project, entity: of wandb.
        tensorboard: write event files to the run's folder.
    """

    wandb: str = "offline"
    project: str = "llamahome"
    entity: str | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        one_of("tracking.wandb", self.wandb, ("offline", "online", "disabled"))
