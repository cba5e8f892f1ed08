"""Faults of replicas as the terminal shows them."""

from __future__ import annotations

import traceback

import pytest

from llamahome.config import ConfigError, ServeConfig
from llamahome.models import ModelCorruptError
from serve.ray.endpoint import base_url, replica_fault


def report(error: Exception) -> str:
    """Return what Ray Serve says of a replica whose constructor raised `error`."""
    try:
        raise error
    except type(error):
        return f"Deploying application llamahome failed.\n{traceback.format_exc()}"


@pytest.mark.parametrize("error", [ConfigError("a.b=1: set a.b=2"), ModelCorruptError("get it")])
def test_a_fault_that_a_user_can_cure_is_one_line(error: Exception) -> None:
    assert replica_fault(report(error)) == str(error)


def test_a_bug_keeps_its_traceback() -> None:
    said = report(ValueError("llamahome.config.checks.ConfigError: no"))
    assert replica_fault(said) == said


def test_the_url_says_whether_tls_is_on() -> None:
    assert base_url(ServeConfig(tls_cert="/c.pem", tls_key="/k.pem")) == "https://127.0.0.1:8000"
    assert base_url(ServeConfig(host="::1", port=1)) == "http://[::1]:1"
