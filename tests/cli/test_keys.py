from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamahome.cli import app
from llamahome.keys import KeyFile, Keyring


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "keys.json"
    monkeypatch.setenv("LLAMAHOME_KEYS_FILE", str(path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str):
        return CliRunner().invoke(app, ["keys", *arguments])

    return path, run


def test_a_key_is_created_listed_and_revoked(keys):
    path, run = keys
    limits = ("--requests-per-minute", "60", "--tokens-per-minute", "9000")
    made = run("create", "--name", "ann", "--expires", "30d", "--models", "a, b", *limits)
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    key = Keyring(KeyFile(path)).find(secret, time.time())
    assert key is not None
    assert (key.role, key.models) == ("user", ("a", "b"))
    assert key.expires is not None
    assert key.expires - key.created == 30 * 86_400
    assert f"serve.keys_file={path}" in made.stderr
    listed = run("list").stdout
    for shown in (key.id, "ann", "user", "valid", "a, b", "60", "9,000"):
        assert shown in listed
    assert secret not in listed
    assert run("revoke", "ann").exit_code == 0
    assert "revoked" in run("list").stdout
    assert Keyring(KeyFile(path)).find(secret, time.time()) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "--name", "a", "--expires", "soon"), "expires='soon'"),
        (("create", "--name", "a", "--expires", "0d"), "expires='0d'"),
        (("create", "--name", "a", "--expires", "999999999w"), "expires='999999999w'"),
        (("create", "--name", "a", "--role", "root"), "role='root'"),
        (("create", "--name", "a/b"), "name='a/b'"),
        (("revoke", "nobody"), "'nobody' names no key"),
    ],
)
def test_a_mistake_is_one_line(keys, arguments, words):
    path, run = keys
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not path.exists()
