from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from llamahome.config import ConfigError, ServeRoot, load_config
from serve import __main__ as main  # also stores the base of conf/serve.yaml

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    return [f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str) -> ServeRoot:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_config(compose("serve", overrides=list(overrides)), ServeRoot)


@pytest.mark.parametrize("choice", [*choices("engine"), *choices("cluster"), *choices("model")])
def test_every_choice_composes_into_the_typed_config(choice):
    assert isinstance(composed(choice), ServeRoot)


def test_the_files_say_what_the_dataclasses_default_to(monkeypatch):
    for name in ("LLAMAHOME_API_KEY", "LLAMAHOME_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert composed() == ServeRoot()


def test_serving_a_network_takes_a_key(monkeypatch):
    monkeypatch.delenv("LLAMAHOME_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="LLAMAHOME_API_KEY"):
        composed("serve=cluster")
    monkeypatch.setenv("LLAMAHOME_API_KEY", "secret")
    served = composed("serve=cluster").serve
    assert (served.host, served.api_key) == ("0.0.0.0", "secret")


@pytest.mark.parametrize("with_key", [False, True])
def test_the_example_names_the_key_and_never_shows_it(with_key):
    text = main.ready_text("http://h:1", "tiny", "2 CPU threads", with_key=with_key)
    assert ("Bearer $LLAMAHOME_API_KEY" in text) == with_key
    assert '"model": "tiny"' in text


def serve(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *overrides],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("serve.prot=1", "prot"),
        ("serve.port=abc", "serve.port"),
        ("serve.port=0", "serve.port=0 is not allowed"),
        ("serve.host=0.0.0.0", "serve.api_key"),
        ("serve.keys_file=/nowhere/keys.json", "serve.keys_file='/nowhere/keys.json'"),
        ("serve.tls_cert=c.pem", "serve.tls_cert='c.pem' is not allowed"),
        ("serve=nowhere", "serve/nowhere"),
        ("model.name=nobody", "no model 'nobody'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, override, words):
    ended = serve(override, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
