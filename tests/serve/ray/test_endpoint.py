"""Faults of replicas as the terminal shows them."""

from __future__ import annotations

import traceback

import pytest
from ray.serve.config import HTTPOptions

from llamahome.config import ConfigError, ServeConfig
from llamahome.models import ModelCorruptError
from serve.http.errors import EndpointError
from serve.ray.endpoint import base_url, check_running, replica_fault


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


def test_a_serve_that_runs_already_may_not_be_less_safe() -> None:
    secure = ServeConfig(tls_cert="/c.pem", tls_key="/k.pem")
    assert base_url(secure) == "https://127.0.0.1:8000"
    with pytest.raises(EndpointError, match=r"serve\.tls_cert='/c\.pem': .* has no certificate"):
        check_running(secure, HTTPOptions())
    with pytest.raises(EndpointError, match=r"serve\.keys_file=None: .* listens on 0\.0\.0\.0"):
        check_running(ServeConfig(), HTTPOptions(host="0.0.0.0"))
    check_running(ServeConfig(), HTTPOptions(host="127.0.0.1"))
    check_running(ServeConfig(api_key="k"), HTTPOptions(host="0.0.0.0"))
