"""Destinations of a run's curves."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import one_of, require


@dataclass(kw_only=True)
class TrackingConfig:
    """wandb, TensorBoard and MLflow.

    Attributes:
        wandb: `offline` writes to the run's folder, `online` also uploads, `disabled` does neither.
        project, entity: wandb's names; `project` is MLflow's experiment, too.
        tensorboard: write event files to the run's folder.
        mlflow: MLflow's tracking URI, such as http://host:5000; `local` writes to mlflow.db in the
            folder of all runs. None writes nothing.
    """

    wandb: str = "offline"
    project: str = "llamahome"
    entity: str | None = None
    tensorboard: bool = True
    mlflow: str | None = None

    def __post_init__(self) -> None:
        one_of("tracking.wandb", self.wandb, ("offline", "online", "disabled"))
        require(
            self.mlflow in (None, "local") or "://" in str(self.mlflow),
            "tracking.mlflow",
            self.mlflow,
            "give a tracking URI (http://host:5000), local or null",
        )
        require(
            not (str(self.mlflow).startswith("http") and "@" in str(self.mlflow)),
            "tracking.mlflow",
            "<hidden>",
            "it holds a password, which would be written into the run; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
