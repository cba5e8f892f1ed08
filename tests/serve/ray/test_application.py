from __future__ import annotations

import subprocess
import sys

from llamahome.config import EngineConfig, ModelConfig, ServeConfig, ServeRoot
from llamahome.keys import digest
from serve.catalog import served_name
from serve.ray.application import (
    autoscaling,
    build_application,
    http_settings,
    listening,
    routing,
)
from serve.ray.drain import drain_limits


def test_the_served_name_never_shows_a_path(tmp_path):
    assert served_name(ServeRoot(model=ModelConfig(name="org/model"))) == "org/model"
    assert served_name(ServeRoot(model=ModelConfig(name=str(tmp_path)))) == tmp_path.name
    named = ServeRoot(serve=ServeConfig(model_id="mine"))
    assert served_name(named) == "mine"


def test_the_ingress_gets_a_digest_and_not_the_key():
    settings = http_settings(ServeRoot(serve=ServeConfig(api_key="secret", min_replicas=0)))
    assert settings.security.api_key == digest("secret")
    assert "secret" not in repr(settings)
    assert settings.may_sleep
    assert not http_settings(ServeRoot()).security.asks_for_keys


def test_the_ingress_starts_without_torch():
    check = "import sys, serve.ray.ingress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_new_engine_replica_does_not_wait_for_the_ingress_to_be_imported():
    check = "import sys, serve.ray.engine_replica; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_application_scales_drains_and_routes_as_configured():
    served = ServeConfig(
        max_replicas=3, request_timeout_s=99, drain_s=7, target_slots=0.5, routing="load"
    )
    root = ServeRoot(
        serve=served,
        engine=EngineConfig(slots=6),
    )
    config = autoscaling(root)
    assert config.policy.policy_kwargs == {"slots": 3.0, "queued_tokens": 2048, "ttft_s": 2.0}
    assert (config.min_replicas, config.max_replicas) == (1, 3)
    assert config.metrics_interval_s < config.look_back_period_s < root.serve.upscale_delay_s
    assert routing(root).is_default_request_router()
    assert routing(ServeRoot()).request_router_kwargs == {"slots": 8}
    ingress = build_application(root, nodes=1, metrics_folder="")._bound_deployment
    engines = ingress.init_args[0]._bound_deployment
    drain = drain_limits(served)
    assert engines._deployment_config.graceful_shutdown_timeout_s == drain.replica_s > 99
    assert ingress._deployment_config.graceful_shutdown_timeout_s == drain.ingress_s > 7
    assert listening(served).grace_s == 7
    assert drain.endpoint_s > drain.ingress_s
