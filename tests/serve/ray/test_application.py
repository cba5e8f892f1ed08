from __future__ import annotations

import subprocess
import sys

from llamahome.config import ModelConfig, ServeConfig, ServeRoot
from llamahome.keys import digest
from serve.ray.application import http_settings, served_name


def test_the_served_name_never_shows_a_path(tmp_path):
    assert served_name(ServeRoot(model=ModelConfig(name="org/model"))) == "org/model"
    assert served_name(ServeRoot(model=ModelConfig(name=str(tmp_path)))) == tmp_path.name
    named = ServeRoot(serve=ServeConfig(model_id="mine"))
    assert served_name(named) == "mine"


def test_the_ingress_gets_a_digest_and_not_the_key():
    settings = http_settings(ServeRoot(serve=ServeConfig(api_key="secret", min_replicas=0)))
    assert settings.security.api_key == digest("secret")
    assert "secret" not in repr(settings)
    assert settings.may_sleep
    assert not http_settings(ServeRoot()).security.asks_for_keys


def test_the_ingress_starts_without_torch():
    check = "import sys, serve.ray.ingress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
