"""Settings of the HTTP endpoints, as plain values that reach an ingress in another process."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamahome.config import EngineConfig
from serve.catalog import Catalog, Served
from serve.security.settings import SecuritySettings


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Settings of the HTTP endpoints.

    Attributes:
        model_id: the name of the served model.
        created: its time, in seconds since 1970.
        adapters: names of its LoRA adapters; each is a model to clients.
        request_timeout_s: seconds after which an incomplete answer is ended.
        max_body_bytes: larger request bodies are refused.
        security: who may use the endpoint.
        may_sleep: whether having no replica is healthy, since one is started on demand.
        docs: whether /docs and /openapi.json answer.
        page: whether the chat page at / answers.
        lens: whether a chat may ask which tokens the cache holds.
    """

    model_id: str
    created: int
    request_timeout_s: float
    max_body_bytes: int
    adapters: tuple[str, ...] = ()
    security: SecuritySettings = field(default_factory=SecuritySettings)
    may_sleep: bool = False
    docs: bool = False
    page: bool = False
    lens: bool = False


def catalog_of(settings: HttpSettings) -> Catalog:
    """Return the catalog of an endpoint whose models never change."""
    adapters = {name: name for name in settings.adapters}
    name = settings.model_id
    return Catalog((Served(name=name, root=name, engine=EngineConfig(adapters=adapters)),))
