"""The endpoint on Ray: starts what it needs, and stops what it started."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray import serve

from cluster.session import ray_session
from llamahome.config import ConfigError, LogConfig, ServeConfig, ServeRoot
from llamahome.models import ModelError, ModelManager
from serve.catalog import first_catalog, served_name
from serve.http.errors import EndpointError
from serve.ray.application import build_application, serves_logging
from serve.ray.cores import cores_text, with_cores
from serve.ray.drain import drain_limits
from serve.ray.shared_catalog import forget_catalogs
from serve.ray.watching import check_tracing
from serve.security.files import check_files

APPLICATION = "llamahome"
# An engine that hangs never drains. Its answers go on at another replica, so none is lost.
SERVE_ENV = {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}
# The last line of a replica's traceback, if it ends in an error of ours that names its cure.
OURS = re.compile(
    r"^llamahome\.(?:config\.checks|models\.errors|requests)\.\w+: (.+)\Z", re.MULTILINE
)


@dataclass(frozen=True)
class Endpoint:
    """The address and model name that clients need, and what the replicas take."""

    url: str
    model_id: str
    cores: str


@contextlib.contextmanager
def running_endpoint(root: ServeRoot) -> Iterator[Endpoint]:
    """Run Ray, the model's replicas and the HTTP ingress for the length of a `with` block.

    The block is entered once requests are answered.

    Raises:
        ConfigError: when a file of keys, TLS or the audit log cannot be used, the port is taken, no
            Ray runs at `cluster.address`, or a local cluster cannot have the model.
        EndpointError: when the application does not come up.
    """
    check_files(root.serve)
    first_catalog(root)  # refuses names that are there twice
    check_tracing(root.serve)
    root = with_cores(root)
    if root.cluster.address == "local":
        _check_port(root.serve)
        root = _with_model_at_hand(root)
    cpus = root.serve.max_replicas * (root.serve.cpus_per_replica or 0)
    with ray_session(root.cluster, min_cpus=cpus, env=SERVE_ENV, relay=root.log.format):
        _start_serve(root.log)
        try:
            _deploy(root)
            yield Endpoint(base_url(root.serve), served_name(root), cores_text(root))
        finally:
            _stop(root.serve, alone=root.cluster.address == "local")


def base_url(config: ServeConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://{host}:{config.port}"


def _start_serve(log: LogConfig) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # The ingress listens itself (serve/ray/ingress.py), so no proxy of Serve's is needed.
    serve.start(proxy_location="Disabled", logging_config=serves_logging(log))


def _deploy(root: ServeRoot) -> None:
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        forget_catalogs()
        application = build_application(root, nodes=nodes, metrics_folder=_metrics_folder())
        serve.run(application, name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        reasons = [
            deployment.message
            for deployment in serve.status().applications[APPLICATION].deployments.values()
            if deployment.message
        ]
        raise EndpointError(replica_fault("\n".join([str(error), *reasons]))) from error


def _metrics_folder() -> str:
    context = ray.get_runtime_context()
    return str(Path(context.get_temp_dir(), context.get_session_name(), "llamahome-metrics"))


def replica_fault(report: str) -> str:
    """Return a fault that a user can cure as its one line, and any other report as it is."""
    cured = OURS.search(report.rstrip())
    return report if cured is None else cured[1]


def _stop(config: ServeConfig, *, alone: bool) -> None:
    """End the application, and a shared Serve only if no other application uses it."""
    serve.delete(APPLICATION, _blocking=False)
    end = time.monotonic() + drain_limits(config).endpoint_s
    while APPLICATION in serve.status().applications and time.monotonic() < end:
        time.sleep(0.1)
    if not alone and serve.status().applications.keys() <= {APPLICATION}:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _check_port(config: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"serve.port={config.port} on serve.host={config.host!r}: {error.strerror}; "
                "choose another"
            ) from error


def _with_model_at_hand(root: ServeRoot) -> ServeRoot:
    """Convert or download the model now, where errors are seen, and once for all replicas."""
    try:
        folder = ModelManager().resolve(root.model.name, root.model.revision)
    except ModelError as error:
        raise ConfigError(f"model.name={root.model.name}: {error}") from error
    model = replace(root.model, name=str(folder), revision=None)
    models = {name: _at_hand(name, source) for name, source in root.serve.models.items()}
    served = replace(root.serve, model_id=served_name(root), models=models)
    return replace(root, model=model, serve=served)


def _at_hand(name: str, source: str) -> str:
    """Check that another model can be had, and return its place as every process finds it."""
    try:
        ModelManager().resolve(source)
    except ModelError as error:
        raise ConfigError(f"serve.models.{name}={source}: {error}") from error
    return str(Path(source).resolve()) if Path(source).is_dir() else source
