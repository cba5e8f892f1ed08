"""The engine deployment. It has a module of its own, because Serve imports it in each new replica:
without FastAPI and the rest of the ingress, a lost replica is back half a second sooner.
"""

from __future__ import annotations

from ray import serve

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.ray.reporting import ReportingReplica


class EngineReplica(ReportingReplica):
    """A replica that Ray Serve runs and names."""

    def __init__(
        self, model: ModelConfig, policy: PolicyConfig, engine: EngineConfig, stall_s: float
    ) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        super().__init__(model, policy, engine, name=name, stall_s=stall_s)

    def __del__(self) -> None:
        """Close the engine; Serve calls this once the replica has answered its last request."""
        if hasattr(self, "_async_engine"):  # a load that failed leaves nothing to close
            self.close()
