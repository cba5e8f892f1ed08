"""Log and traces of the processes that Ray Serve runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ray import serve

from llamahome.config import ConfigError, LogConfig, ServeConfig
from llamahome.logs import configure_logging

if TYPE_CHECKING:
    from serve.tracing import Tracing

NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


@dataclass(frozen=True, kw_only=True)
class Watching:
    """Settings of log lines and traces, see `LogConfig` and `ServeConfig`."""

    log: LogConfig
    traces_endpoint: str | None
    traces_share: float

    def begin(self) -> tuple[str, Tracing | None]:
        """Set up this process's log and traces, which name it as Ray Serve does.

        Returns:
            The name of its replica, and the source of its spans if traces are wanted.
        """
        own = serve.get_replica_context().replica_id
        name = own.unique_id
        fields = {"deployment": own.deployment_id.name, "replica": name}
        configure_logging(self.log.level or "INFO", self.log.format, **fields)
        if self.traces_endpoint is None:
            return name, None
        from serve.tracing import Tracing  # an extra

        instance = f"{own.deployment_id.name}/{name}"
        return name, Tracing(self.traces_endpoint, self.traces_share, instance)


def check_tracing(config: ServeConfig) -> None:
    """Raise ConfigError where traces are wanted and their packages are not installed."""
    if config.otlp_traces_endpoint is None:
        return
    try:
        there = all(find_spec(name) is not None for name in NEEDED)
    except ModuleNotFoundError:  # a parent of theirs
        there = False
    if not there:
        raise ConfigError(
            f"serve.otlp_traces_endpoint={config.otlp_traces_endpoint!r} needs OpenTelemetry: "
            "pip install 'llamahome[tracing]'"
        )
