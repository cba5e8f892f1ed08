"""Environments of peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine.peers import PEERS, Peer, environment
from benchmarks.process import SCRIPTS, PeerError


def test_a_failed_installation_names_the_package(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-package"
    peer = Peer(name="none", script="none.py", packages=(str(missing),))
    with pytest.raises(PeerError, match="no-such-package"):
        environment(peer, tmp_path)
    assert not (tmp_path / "none" / "installed").exists()


def test_every_peer_has_its_script() -> None:
    assert [peer.name for peer in PEERS if not (SCRIPTS / peer.script).is_file()] == []
