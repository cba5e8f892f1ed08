"""The endpoint: its address, scaling and limits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from llamahome.config.checks import above, at_least, one_of, require

ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


@dataclass(kw_only=True)
class ServeConfig:
    """One Ray Serve application.

    Attributes:
        host, port: address of the HTTP proxy; any host but loopback needs an api_key or keys_file.
        api_key: an admin's key that is always valid; without it and keys_file, none is asked for.
        keys_file: keys of `llamahome keys`; changes hold at once.
        audit_log: file that gets a line of JSON for each request; None writes none.
        cors_origins: web pages that may use the endpoint, such as https://chat.example.org.
        tls_cert, tls_key: PEM files of a certificate with its chain, and its key; None is HTTP.
        model_id: name in /v1/models; None is the model's own name.
        models: other models by the name of clients: each a model's name, a run or a folder, under
            `policy` and `engine`, without its adapters; loaded on demand.
        max_models: models that one replica keeps in memory; the least recently used leaves first.
        model_dirs: folders below which models and adapters may lie that an admin adds while the
            endpoint runs; finished runs are always allowed.
        min_replicas, max_replicas: engine replicas.
        target_slots, target_queued_tokens, target_ttft_s: share of a replica's slots in use, prompt
            tokens that it has still to read, and seconds to the first token, above which the
            autoscaler adds replicas.
        upscale_delay_s, downscale_delay_s: seconds that load must last before replicas change.
        routing: `prefix` (a request goes to the replica that has read the most of it before, unless
            others have less to do) or `load` (Ray Serve's: the less busy one of two).
        cpus_per_replica, gpus_per_replica: Ray resources of one engine replica. CPUs are also its
            threads; None shares this machine's cores among `max_replicas`, and is 1 on a cluster.
        request_timeout_s: seconds after which a request is ended.
        first_token_timeout_s, token_timeout_s: seconds in which a replica has to give the first
            token of an answer, its queue included, and each one after it; then another replica goes
            on.
        drain_s: seconds that open answers have when the endpoint is stopped.
        max_body_bytes: size of a request body above which it is refused with 413.
        store_bytes: memory for the responses that /v1/responses keeps, as JSON; 0 keeps none.
        store_s: seconds that a response is kept.
        docs: answer /docs and /openapi.json, which describe the endpoints.
        page: answer / with a page to chat on; None does so on loopback only.
        lens: let a chat ask which tokens the KV cache holds; None does so on loopback only.
        otlp_traces_endpoint: URL of a collector that gets traces by OTLP over HTTP, such as
            http://localhost:4318/v1/traces; None makes none. It needs the extra `tracing`.
        traces_share: share of the requests that are traced; a client's traceparent has precedence.
        ingresses: HTTP processes of a node; all listen on `port`, and if one dies, others answer.
        max_header_bytes: size of a request's line and headers above which it is refused.
        header_timeout_s: seconds in which they must arrive, and an idle connection is kept.
        max_connections_per_client: connections of one address to one ingress process.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)  # never logged
    keys_file: str | None = None
    audit_log: str | None = None
    cors_origins: list[str] = field(default_factory=list)
    tls_cert: str | None = None
    tls_key: str | None = None
    model_id: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    max_models: int = 2
    model_dirs: list[str] = field(default_factory=list)
    min_replicas: int = 1
    max_replicas: int = 1
    target_slots: float = 0.75
    target_queued_tokens: int = 2048
    target_ttft_s: float = 2.0
    upscale_delay_s: float = 3.0
    downscale_delay_s: float = 120.0
    routing: str = "prefix"
    cpus_per_replica: float | None = None
    gpus_per_replica: float = 0.0
    request_timeout_s: float = 600.0
    first_token_timeout_s: float = 300.0
    token_timeout_s: float = 60.0
    drain_s: float = 20.0
    max_body_bytes: int = 4_194_304
    store_bytes: int = 2**26
    store_s: float = 3600.0
    docs: bool = False
    page: bool | None = None
    lens: bool | None = None
    otlp_traces_endpoint: str | None = None
    traces_share: float = 1.0
    ingresses: int = 2
    max_header_bytes: int = 32_768
    header_timeout_s: float = 30.0
    max_connections_per_client: int = 1024

    def __post_init__(self) -> None:
        require(0 < self.port < 65536, "serve.port", self.port, "it must lie in 1..65535")
        for name in (
            "min_replicas",
            "upscale_delay_s",
            "downscale_delay_s",
            "gpus_per_replica",
            "drain_s",
        ):
            at_least(f"serve.{name}", getattr(self, name), 0)
        at_least("serve.max_replicas", self.max_replicas, max(1, self.min_replicas))
        for name in (
            "target_ttft_s",
            "request_timeout_s",
            "first_token_timeout_s",
            "token_timeout_s",
            "header_timeout_s",
            "store_s",
        ):
            above(f"serve.{name}", getattr(self, name), 0)
        if self.cpus_per_replica is not None:
            above("serve.cpus_per_replica", self.cpus_per_replica, 0)
        at_least("serve.store_bytes", self.store_bytes, 0)
        require(
            0 < self.target_slots <= 1, "serve.target_slots", self.target_slots, "it is a share"
        )
        one_of("serve.routing", self.routing, ("prefix", "load"))
        for name in ("max_body_bytes", "max_header_bytes"):
            at_least(f"serve.{name}", getattr(self, name), 1024)
        for name in (
            "ingresses",
            "max_models",
            "max_connections_per_client",
            "target_queued_tokens",
        ):
            at_least(f"serve.{name}", getattr(self, name), 1)
        traces = self.otlp_traces_endpoint
        require(
            traces is None or re.fullmatch(r"https?://[^/@\s]+(/\S*)?", traces) is not None,
            "serve.otlp_traces_endpoint",
            traces if traces is None or "@" not in traces else "<hidden>",
            "give a URL such as http://localhost:4318/v1/traces; headers for a login go into the "
            "environment, as OTEL_EXPORTER_OTLP_HEADERS",
        )
        share = self.traces_share
        require(0 <= share <= 1, "serve.traces_share", share, "it is a share, 0 to 1")
        require(
            all(name.strip() and source.strip() for name, source in self.models.items()),
            "serve.models",
            self.models,
            "give each model a name, and a model's name, a run or a folder",
        )
        require(
            all(Path(folder).expanduser().is_dir() for folder in self.model_dirs),
            "serve.model_dirs",
            self.model_dirs,
            "each must be a folder that is there",
        )
        require(
            is_loopback(self.host) or bool(self.api_key) or bool(self.keys_file),
            "serve.host",
            self.host,
            "listening beyond loopback needs serve.api_key (or LLAMAHOME_API_KEY in the "
            "environment) or serve.keys_file (see: llamahome keys); or use serve.host=127.0.0.1",
        )
        require(
            all(ORIGIN.fullmatch(origin) for origin in self.cors_origins),
            "serve.cors_origins",
            self.cors_origins,
            "give each origin as https://host or http://host:port, in lower case, without a path; "
            "* is not possible",
        )
        require(
            (self.tls_cert is None) == (self.tls_key is None),
            "serve.tls_cert" if self.tls_key is None else "serve.tls_key",
            self.tls_cert if self.tls_key is None else self.tls_key,
            "HTTPS needs both serve.tls_cert and serve.tls_key",
        )

    def shows(self, option: bool | None) -> bool:
        """Return what `page` or `lens` stands for."""
        return is_loopback(self.host) if option is None else option


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
