"""Files that the endpoint's security needs, checked before Ray starts."""

from __future__ import annotations

import os
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from llamahome.config import ConfigError, ServeConfig
from llamahome.config.checks import require
from llamahome.config.serve import is_loopback
from llamahome.keys import KeyFile, KeysError
from serve.security.settings import SecuritySettings

TIME = "%Y-%m-%d %H:%M UTC"


def check_files(config: ServeConfig) -> None:
    """Check that keys, certificate and audit log can be used as they are.

    Raises:
        ConfigError: for the first that cannot.
    """
    settings = SecuritySettings.of(config)
    if settings.keys_file is not None:
        _check_keys(config, settings.keys_file)
    if config.tls_cert is not None and config.tls_key is not None:
        _check_certificate(config.tls_cert, config.tls_key)
    if settings.audit_log is not None:
        _check_audit_log(settings.audit_log)


def _check_keys(config: ServeConfig, path: Path) -> None:
    require(path.is_file(), "serve.keys_file", str(path), "no such file: llamahome keys create")
    try:
        keys = KeyFile(path).read()
    except KeysError as error:
        raise ConfigError(f"serve.keys_file: {error}") from error
    usable = bool(config.api_key) or any(key.state(time.time()) == "valid" for key in keys)
    require(
        usable or is_loopback(config.host),
        "serve.keys_file",
        str(path),
        f"it holds no valid key, and serve.host={config.host!r} needs one: llamahome keys create",
    )


def _check_certificate(cert: str, key: str) -> None:
    """Check that a certificate can be read, is of its key, and is valid now."""
    for name, path in (("serve.tls_cert", cert), ("serve.tls_key", key)):
        require(os.access(path, os.R_OK), name, path, "no such file, or it may not be read")
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert).read_bytes())
    except ValueError as error:
        raise ConfigError(f"serve.tls_cert={cert!r} is no certificate in PEM: {error}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"serve.tls_key={key!r} is not the key of {cert!r}, or it has a password: {error}"
        ) from error
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    require(
        begin <= datetime.now(UTC) < end,
        "serve.tls_cert",
        cert,
        f"it is valid from {begin:{TIME}} to {end:{TIME}}; renew it",
    )


def _check_audit_log(path: Path) -> None:
    try:
        with path.open("ab"):
            path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"serve.audit_log={str(path)!r} cannot be written: {error.strerror}"
        ) from error
