"""The engine deployment. It has a module of its own, because Serve imports it in each new replica:
without FastAPI and the rest of the ingress, a lost replica is back half a second sooner.
"""

from __future__ import annotations

from serve.catalog import Catalog
from serve.ray.reporting import ReportingReplica
from serve.ray.shared_catalog import latest
from serve.ray.watching import Watching


class EngineReplica(ReportingReplica):
    """A replica that Ray Serve runs and names. It begins with the default model as it is by now."""

    def __init__(
        self, catalog: Catalog, max_models: int, stall_s: float, watching: Watching
    ) -> None:
        name, tracing = watching.begin()
        first = latest(catalog).default
        super().__init__(first, tracing=tracing, name=name, max_models=max_models, stall_s=stall_s)

    def __del__(self) -> None:
        """Close the engines; Serve calls this once the replica has answered its last request."""
        if hasattr(self, "_held"):  # a load that failed leaves nothing to close
            self.close()
            if self._tracing is not None:
                self._tracing.close()
