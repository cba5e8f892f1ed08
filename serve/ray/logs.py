"""The log of a process that Ray Serve runs."""

from __future__ import annotations

from ray import serve

from llamahome.config import LogConfig
from llamahome.logs import configure_logging


def log_as_replica(log: LogConfig) -> str:
    """Have this process's lines name it as Ray Serve does; return the name of its replica."""
    own = serve.get_replica_context().replica_id
    fields = {"deployment": own.deployment_id.name, "replica": own.unique_id}
    configure_logging(log.level or "INFO", log.format, **fields)
    return own.unique_id
