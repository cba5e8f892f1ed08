"""The endpoint: its address, scaling and limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from llamahome.config.checks import above, at_least, require


@dataclass(kw_only=True)
class ServeConfig:
    """One Ray Serve application.

    Attributes:
        host, port: address of the HTTP proxy; any host but loopback needs an api_key.
        api_key: bearer token that clients send; None asks for none.
        model_id: name in /v1/models; None is the model's own name.
        min_replicas, max_replicas: engine replicas.
        target_ongoing_requests: requests per replica above which the autoscaler adds replicas.
        upscale_delay_s, downscale_delay_s: seconds that load must last before replicas change.
        cpus_per_replica, gpus_per_replica: Ray resources of one engine replica.
        request_timeout_s: seconds after which a request is ended.
        first_token_timeout_s, token_timeout_s: seconds in which a replica has to give the first
            token of an answer, its queue included, and each one after it; then another replica goes
            on.
        max_body_bytes: size of a request body above which it is refused with 413.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)  # never logged
    model_id: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4.0
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 120.0
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    request_timeout_s: float = 600.0
    first_token_timeout_s: float = 300.0
    token_timeout_s: float = 60.0
    max_body_bytes: int = 4_194_304

    def __post_init__(self) -> None:
        require(0 < self.port < 65536, "serve.port", self.port, "it must lie in 1..65535")
        for name in ("min_replicas", "upscale_delay_s", "downscale_delay_s", "gpus_per_replica"):
            at_least(f"serve.{name}", getattr(self, name), 0)
        at_least("serve.max_replicas", self.max_replicas, max(1, self.min_replicas))
        for name in (
            "target_ongoing_requests",
            "cpus_per_replica",
            "request_timeout_s",
            "first_token_timeout_s",
            "token_timeout_s",
        ):
            above(f"serve.{name}", getattr(self, name), 0)
        at_least("serve.max_body_bytes", self.max_body_bytes, 1024)
        require(
            is_loopback(self.host) or bool(self.api_key),
            "serve.host",
            self.host,
            "listening beyond loopback needs serve.api_key (or LLAMAHOME_API_KEY in the "
            "environment); or use serve.host=127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
