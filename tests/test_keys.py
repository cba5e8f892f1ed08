from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamahome.keys import Key, KeyFile, Keyring, KeysError, digest

CREATE = "import sys; from pathlib import Path; from llamahome.keys import KeyFile; \
[KeyFile(Path(sys.argv[1])).create(f'{sys.argv[2]}-{i}') for i in range(10)]"


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_the_file_holds_no_secret_and_nobody_else_reads_it(file):
    key, secret = file.create("ann", role="admin", models=("a", "b"), tokens_per_minute=5)
    text = file.path.read_text()
    assert secret not in text
    assert digest(secret) in text
    assert len(secret) > 43  # 256 bits in base64
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.read() == (key,)
    assert (key.models, key.tokens_per_minute, key.admin) == (("a", "b"), 5, True)


def test_changes_are_seen_by_a_running_keyring(file):
    ring = Keyring(file)
    assert ring.find("lh-x", 0.0) is None
    key, secret = file.create("ann")
    assert ring.find(secret, 0.0) == key
    _, other = file.create("bob")
    assert ring.find(other, 0.0) is not None
    file.revoke("ann")
    assert ring.find(secret, 0.0) is None
    assert ring.find(other, 0.0) is not None


def test_a_key_expires(file):
    key, secret = file.create("ann", expires=100)
    ring = Keyring(file)
    assert ring.find(secret, 99.0) == key
    assert ring.find(secret, 100.0) is None


def test_the_key_of_the_config_needs_no_file():
    fixed = Key(id="config", name="config", sha256=digest("sesame"), role="admin")
    ring = Keyring(None, fixed)
    assert ring.find("sesame", 0.0) == fixed
    assert ring.find("sesamé", 0.0) is None
    assert ring.find("", 0.0) is None


@pytest.mark.parametrize("harm", ["gone", "broken", "open", "other"])
def test_a_file_that_cannot_be_trusted_lets_nobody_in(file, harm):
    _, secret = file.create("ann")
    said: list[str] = []
    ring = Keyring(file, report=said.append)
    assert ring.find(secret, 0.0) is not None
    if harm == "gone":
        file.path.unlink()
    elif harm == "open":
        file.path.chmod(0o666)
    else:
        file.path.write_text("{" if harm == "broken" else '{"keys": [{"id": 1}]}')
    assert ring.find(secret, 0.0) is None
    assert ring.find(secret, 0.0) is None
    assert len(said) == (harm != "gone")


def test_a_name_is_free_again_once_its_key_is_invalid(file):
    file.create("ann", expires=1)
    second, _ = file.create("ann")
    with pytest.raises(KeysError, match=r"name='ann' is in use"):
        file.create("ann")
    assert file.revoke("ann").id == second.id  # the valid one
    file.create("ann")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "a b"}, "name='a b'"),
        ({"name": ""}, "name=''"),
        ({"role": "root"}, "role='root'"),
        ({"requests_per_minute": 0}, "requests_per_minute=0"),
        ({"tokens_per_minute": -1}, "tokens_per_minute=-1"),
        ({"models": ("a", "")}, "models='a,'"),
    ],
)
def test_a_setting_out_of_range_is_refused_and_nothing_is_written(file, settings, words):
    with pytest.raises(KeysError) as caught:
        file.create(**{"name": "ann", **settings})
    assert words in str(caught.value)
    assert not file.path.exists()


def test_an_unknown_key_cannot_be_revoked(file):
    with pytest.raises(KeysError, match="'ann' names no key"):
        file.revoke("ann")


def test_processes_that_write_at_once_lose_no_key(file):
    def create(name: str) -> None:
        subprocess.run([sys.executable, "-c", CREATE, str(file.path), name], check=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(create, ("a", "b", "c")))
    names = {key.name for key in file.read()}
    assert names == {f"{process}-{i}" for process in "abc" for i in range(10)}
    assert len({entry["id"] for entry in json.loads(file.path.read_text())["keys"]}) == 30
