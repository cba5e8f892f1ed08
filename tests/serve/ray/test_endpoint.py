from __future__ import annotations

import socket

import pytest

from llamahome.config import ConfigError, ModelConfig, ServeConfig, ServeRoot
from serve.ray.endpoint import base_url, running_endpoint


def refusal(root: ServeRoot) -> str:
    """Return the reason why an endpoint does not start, given before Ray does."""
    with pytest.raises(ConfigError) as error, running_endpoint(root):
        pass
    return str(error.value)


def test_a_taken_port_is_said_before_anything_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"serve.port={port}" in refusal(ServeRoot(serve=ServeConfig(port=port)))


def test_an_unknown_model_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path))
    message = refusal(ServeRoot(model=ModelConfig(name="nosuch")))
    assert "model.name=nosuch" in message


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")]
)
def test_the_base_url(host, url):
    assert base_url(ServeConfig(host=host, port=80)) == url
