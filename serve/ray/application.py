"""The Ray Serve application: one HTTP ingress in front of engine replicas that scale."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig, ServeRoot
from serve.http.api import HttpSettings
from serve.http.guard import key_digest
from serve.ray.ingress import Api
from serve.ray.recovery import Deadlines
from serve.replica import Replica

# A replica that is dead is replaced after one check, one that does not answer after three.
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0
# Time for unfinished answers when a replica is scaled down, updated or stopped.
GRACEFUL_SHUTDOWN_S = 20.0
# An access log would repeat request ids as clients choose them.
LOGGING = LoggingConfig(enable_access_log=False)
# The ingress only waits; the replicas limit what it lets in.
INGRESS_ONGOING = 10_000


class EngineReplica(Replica):
    """A `Replica` that Ray Serve runs and names."""

    def __init__(
        self, model: ModelConfig, policy: PolicyConfig, engine: EngineConfig, stall_s: float
    ) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        super().__init__(model, policy, engine, name=name, stall_s=stall_s)

    def __del__(self) -> None:
        """Close the engine; Serve calls this once the replica has answered its last request."""
        if hasattr(self, "_async_engine"):  # a load that failed leaves nothing to close
            self.close()


def build_application(root: ServeRoot) -> Application:
    """Build the application for `serve.run`; the replicas load the model."""
    both: dict[str, Any] = {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "logging_config": LOGGING,
    }
    engines = serve.deployment(
        ray_actor_options={
            "num_cpus": root.serve.cpus_per_replica,
            "num_gpus": root.serve.gpus_per_replica,
        },
        # Twice what an engine takes, so that the engine refuses, with a reason, and not the router.
        max_ongoing_requests=2 * (root.engine.slots + root.engine.max_queued),
        max_queued_requests=root.engine.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=root.serve.min_replicas,
            max_replicas=root.serve.max_replicas,
            target_ongoing_requests=root.serve.target_ongoing_requests,
            upscale_delay_s=root.serve.upscale_delay_s,
            downscale_delay_s=root.serve.downscale_delay_s,
        ),
        **both,
    )(EngineReplica)
    ingress = serve.deployment(
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=INGRESS_ONGOING, **both
    )(Api)
    replicas = engines.bind(root.model, root.policy, root.engine, root.serve.token_timeout_s)
    deadlines = Deadlines(
        first_token_s=root.serve.first_token_timeout_s, token_s=root.serve.token_timeout_s
    )
    return ingress.bind(replicas, http_settings(root), deadlines)


def http_settings(root: ServeRoot) -> HttpSettings:
    key = root.serve.api_key
    return HttpSettings(
        model_id=served_name(root),
        created=int(time.time()),
        request_timeout_s=root.serve.request_timeout_s,
        max_body_bytes=root.serve.max_body_bytes,
        key=key_digest(key) if key else None,
        adapters=tuple(root.engine.adapters),
        may_sleep=root.serve.min_replicas == 0,
    )


def served_name(root: ServeRoot) -> str:
    """Return the clients' name for the model; a local folder gives its last part, not its path."""
    if root.serve.model_id is not None:
        return root.serve.model_id
    folder = Path(root.model.name)
    return folder.resolve().name if folder.is_dir() else root.model.name
