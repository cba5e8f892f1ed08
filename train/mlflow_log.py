"""A run's curves in MLflow, on a server or in a database file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from llamahome.config import ConfigError
from train.errors import StoppedError
from train.runs.folder import flattened
from train.runs.tables import spelled

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

DATABASE = "mlflow.db"
RUN_ID = "mlflow_run_id"  # a file in the run's folder, by which a resumed run goes on
PARAMS_AT_ONCE = 100  # MLflow's limit
# MLflow's own settings would wait four minutes for a server that is not there.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextmanager
def mlflow_numbers(
    place: str, experiment: str, run_dir: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yield a function that logs a step's values; it gives up for good when one cannot be logged.

    Args:
        place: a tracking URI, or `local` for a database next to the run's folder.
        settings: the run's config, logged as parameters.

    Raises:
        ConfigError: when nothing can be logged there.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    try:
        client, run_id = _opened(place, experiment, run_dir, settings)
    except MlflowException as error:
        reason = str(error).partition("(Caused by")[0].splitlines()[0]
        raise ConfigError(
            f"tracking.mlflow={place!r} cannot be used ({reason}); start the server, or set "
            "tracking.mlflow=local or null"
        ) from error
    works = True

    def log(step: int, values: Mapping[str, float]) -> None:
        nonlocal works
        if not works:
            return
        now = int(time.time() * 1000)
        try:
            client.log_batch(run_id, [Metric(n, float(v), now, step) for n, v in values.items()])
        except MlflowException as error:
            works = False
            logger.warning("MLflow has this run only up to step %d: %s", step - 1, error)

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except StoppedError:
        status = "KILLED"
        raise
    finally:
        if works:
            client.set_terminated(run_id, status)


def _opened(
    place: str, experiment: str, run_dir: Path, settings: Mapping[str, Any]
) -> tuple[MlflowClient, str]:
    """Return a client, and the id of this run in MLflow."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    known = run_dir / RUN_ID
    runs_dir = run_dir.parent
    artifacts = (runs_dir / "mlartifacts").as_uri() if place == "local" else None
    uri = f"sqlite:///{runs_dir / DATABASE}" if place == "local" else place
    with FileLock(runs_dir / f"{DATABASE}.lock"):  # runs of a sweep make the database once
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            client.create_experiment(experiment, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
    if known.is_file():
        run_id = known.read_text()
        client.update_run(run_id, status="RUNNING")
        return client, run_id
    run_id = client.create_run(experiment_id, run_name=run_dir.name).info.run_id
    params = [Param(name, spelled(value)) for name, value in flattened(settings).items()]
    for start in range(0, len(params), PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
    known.write_text(run_id)
    return client, run_id
