from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llamahome.config import ConfigError, ServeConfig
from llamahome.keys import KeyFile
from serve.security.files import check_files

NOW = datetime.now(UTC)


def certificate(folder: Path, name: str, *, days: tuple[int, int] = (-1, 1)) -> tuple[str, str]:
    """Write a self-signed certificate, valid for `days` from now, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(files[0]), str(files[1])


def tls(cert: str, key: str) -> ServeConfig:
    return ServeConfig(tls_cert=cert, tls_key=key)


def refusal(config: ServeConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_can_be_used_pass(tmp_path):
    keys = tmp_path / "keys.json"
    KeyFile(keys).create("ann")
    cert, key = certificate(tmp_path, "good")
    log = tmp_path / "audit.log"
    check_files(
        ServeConfig(
            host="0.0.0.0", keys_file=str(keys), audit_log=str(log), tls_cert=cert, tls_key=key
        )
    )
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_certificate_must_be_readable_valid_now_and_of_its_key(tmp_path):
    cert, key = certificate(tmp_path, "good")
    _, other = certificate(tmp_path, "other")
    assert "serve.tls_cert='nowhere'" in refusal(tls("nowhere", key))
    assert "serve.tls_key='nowhere'" in refusal(tls(cert, "nowhere"))
    assert "is no certificate in PEM" in refusal(tls(key, key))
    assert "is not the key of" in refusal(tls(cert, other))
    assert "renew it" in refusal(tls(*certificate(tmp_path, "old", days=(-3, -1))))
    assert "renew it" in refusal(tls(*certificate(tmp_path, "early", days=(1, 2))))


def test_listening_beyond_loopback_needs_a_key_that_is_valid(tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    beyond = ServeConfig(host="0.0.0.0", keys_file=str(keys.path))
    assert "no such file" in refusal(beyond)
    keys.create("ann", expires=1)
    assert "it holds no valid key" in refusal(beyond)
    check_files(ServeConfig(keys_file=str(keys.path)))  # keys may follow, on loopback
    check_files(ServeConfig(host="0.0.0.0", keys_file=str(keys.path), api_key="k"))
    keys.create("bob")
    check_files(beyond)
    keys.path.write_text("{}")
    assert "is no keys file" in refusal(beyond)


def test_an_audit_log_must_be_writable(tmp_path):
    said = refusal(ServeConfig(audit_log=str(tmp_path / "none" / "audit.log")))
    assert "audit.log' cannot be written: No such file" in said
