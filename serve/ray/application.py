"""The Ray Serve application: one HTTP ingress in front of engine replicas that scale."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from llamahome.config import ServeConfig, ServeRoot
from serve.catalog import Catalog, first_catalog, served_name
from serve.http.changes import Sources
from serve.http.metrics import FOLDER
from serve.http.server import EdgeLimits
from serve.http.settings import HttpSettings
from serve.http.stateful.store import MemoryStore
from serve.ray.ingress import Api, Listening
from serve.ray.limiter import KeyLimits
from serve.ray.recovery import Deadlines
from serve.ray.reporting import ReportingReplica
from serve.ray.router import PrefixRouter
from serve.ray.scaling import ScarcityPolicy, Targets
from serve.ray.shared_catalog import latest
from serve.security.settings import SecuritySettings

# A replica that is dead is replaced after one check, one that does not answer after three.
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 5.0
# Time for unfinished answers when the application or an ingress stops.
GRACEFUL_SHUTDOWN_S = 20.0
# Replicas and ingresses report their load so often; decisions look back over a few reports.
METRICS_PERIOD_S = 0.5
LOOK_BACK_S = 2.0
ROUTING_PERIOD_S = 2.0
# An access log would repeat request ids as clients choose them.
LOGGING = LoggingConfig(enable_access_log=False)


class EngineReplica(ReportingReplica):
    """A replica that Ray Serve runs and names. It begins with the default model as it is by now."""

    def __init__(self, catalog: Catalog, max_models: int, stall_s: float) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        first = latest(catalog).default
        super().__init__(first, name=name, max_models=max_models, stall_s=stall_s)

    def __del__(self) -> None:
        """Close the engines; Serve calls this once the replica has answered its last request."""
        if hasattr(self, "_held"):  # a load that failed leaves nothing to close
            self.close()


def build_application(root: ServeRoot, *, nodes: int, metrics_folder: str) -> Application:
    """Build the application for `serve.run`; the replicas load the model.

    Args:
        root: the config.
        nodes: number of nodes whose port answers; each has `serve.ingresses` processes.
        metrics_folder: folder on each node into which its ingress processes count.
    """
    both: dict[str, Any] = {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
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
        # A replica that is scaled down takes nothing new and has the time that any answer has.
        graceful_shutdown_timeout_s=root.serve.request_timeout_s,
        autoscaling_config=autoscaling(root),
        request_router_config=routing(root),
        **both,
    )(EngineReplica)
    ingress = serve.deployment(
        num_replicas=root.serve.ingresses * nodes,
        max_replicas_per_node=root.serve.ingresses,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {FOLDER: metrics_folder}}},
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        **both,
    )(Api)
    catalog = first_catalog(root)
    deadlines = Deadlines(
        first_token_s=root.serve.first_token_timeout_s, token_s=root.serve.token_timeout_s
    )
    # One process keeps the buckets of all keys, so that limits hold over every ingress.
    limits = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000, **both)(
        KeyLimits
    )
    # One process, so that every ingress finds what another has kept.
    store = serve.deployment(
        name="ResponseStore", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000, **both
    )(MemoryStore)
    return ingress.bind(
        engines.bind(catalog, root.serve.max_models, root.serve.token_timeout_s),
        http_settings(root),
        (catalog, Sources.of(root, catalog)),
        listening(root.serve),
        deadlines,
        limits.bind() if root.serve.keys_file is not None else None,
        store.bind(root.serve.store_bytes, root.serve.store_s) if root.serve.store_bytes else None,
    )


def listening(config: ServeConfig) -> Listening:
    tls = None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = (os.path.abspath(config.tls_cert), os.path.abspath(config.tls_key))
    return Listening(
        host=config.host,
        port=config.port,
        limits=EdgeLimits(
            header_bytes=config.max_header_bytes,
            header_timeout_s=config.header_timeout_s,
            connections_per_client=config.max_connections_per_client,
        ),
        grace_s=GRACEFUL_SHUTDOWN_S,
        tls=tls,
    )


def autoscaling(root: ServeRoot) -> AutoscalingConfig:
    by = Targets(
        slots=root.serve.target_slots * root.engine.slots,
        queued_tokens=root.serve.target_queued_tokens,
        ttft_s=root.serve.target_ttft_s,
    )
    config = AutoscalingConfig(
        min_replicas=root.serve.min_replicas,
        max_replicas=root.serve.max_replicas,
        upscale_delay_s=root.serve.upscale_delay_s,
        downscale_delay_s=root.serve.downscale_delay_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=ScarcityPolicy, policy_kwargs=asdict(by)
        ),
    )
    # Not an argument: it warns of an environment variable that Ray 2.60 names and never reads.
    return config.model_copy(
        update={"metrics_interval_s": METRICS_PERIOD_S, "look_back_period_s": LOOK_BACK_S}
    )


def routing(root: ServeRoot) -> RequestRouterConfig:
    if root.serve.routing == "load":
        return RequestRouterConfig()
    options: dict[str, Any] = {
        "request_router_class": PrefixRouter,
        "request_router_kwargs": {"slots": root.engine.slots},
        "request_routing_stats_period_s": ROUTING_PERIOD_S,
    }
    return RequestRouterConfig(**options)


def http_settings(root: ServeRoot) -> HttpSettings:
    return HttpSettings(
        model_id=served_name(root),
        created=int(time.time()),
        request_timeout_s=root.serve.request_timeout_s,
        max_body_bytes=root.serve.max_body_bytes,
        security=SecuritySettings.of(root.serve),
        adapters=tuple(root.engine.adapters),
        may_sleep=root.serve.min_replicas == 0,
        docs=root.serve.docs,
    )
