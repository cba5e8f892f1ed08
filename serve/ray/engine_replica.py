"""The engine deployment. It has a module of its own, because Serve imports it in each new replica:
without FastAPI and the rest of the ingress, a lost replica is back half a second sooner.
"""

from __future__ import annotations

from llamahome.config import LogConfig
from serve.catalog import Catalog
from serve.ray.logs import log_as_replica
from serve.ray.reporting import ReportingHost
from serve.ray.shared_catalog import latest


class EngineReplica(ReportingHost):
    """A replica that Ray Serve runs and names. It begins with the default model as it is by now."""

    def __init__(self, catalog: Catalog, max_models: int, stall_s: float, log: LogConfig) -> None:
        name = log_as_replica(log)
        first = latest(catalog).default
        super().__init__(first, name=name, max_models=max_models, stall_s=stall_s)

    def __del__(self) -> None:
        """Close the engines; Serve calls this once the replica has answered its last request."""
        if hasattr(self, "_held"):  # a load that failed leaves nothing to close
            self.close()
