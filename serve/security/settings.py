"""The settings of who may use the endpoint, as every ingress process gets them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llamahome.config import ServeConfig
from llamahome.keys import Key, KeyFile, Keyring, digest

logger = logging.getLogger(__name__)

CONFIG_KEY = "serve.api_key"


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Settings without secrets: Ray may show them to whoever can read its state.

    Attributes:
        api_key: SHA-256 of `serve.api_key`, in hex; it is an admin's.
        keys_file: see `llamahome.keys`; with neither, no key is asked for.
        audit_log: file that gets a line for each request.
        cors_origins: origins of web pages that may use the endpoint.
        tls: whether clients come by HTTPS.
    """

    api_key: str | None = None
    keys_file: Path | None = None
    audit_log: Path | None = None
    cors_origins: tuple[str, ...] = ()
    tls: bool = False

    @classmethod
    def of(cls, config: ServeConfig) -> SecuritySettings:
        """Return the settings of a config, with its paths made absolute."""
        return cls(
            api_key=digest(config.api_key) if config.api_key else None,
            keys_file=_absolute(config.keys_file),
            audit_log=_absolute(config.audit_log),
            cors_origins=tuple(config.cors_origins),
            tls=config.tls_cert is not None,
        )

    @property
    def asks_for_keys(self) -> bool:
        return self.api_key is not None or self.keys_file is not None

    def fixed_key(self) -> Key | None:
        """Return `serve.api_key` as a key: an admin's, without limits."""
        if self.api_key is None:
            return None
        return Key(id="config", name=CONFIG_KEY, sha256=self.api_key, role="admin")


def keyring(settings: SecuritySettings) -> Keyring | None:
    """Return the keys that are accepted, or None where none is asked for."""
    if not settings.asks_for_keys:
        return None
    file = None if settings.keys_file is None else KeyFile(settings.keys_file)
    return Keyring(file, settings.fixed_key(), report=logger.error)


def _absolute(path: str | None) -> Path | None:
    return None if path is None else Path(path).expanduser().resolve()
