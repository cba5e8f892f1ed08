"""A peer's process: answers, is stopped in between, and says why it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.engine.peers import SCRIPTS, Peer, PeerError, Process, environment

PEER = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from protocol import serve, timed_steps

class Engine:
    def __init__(self, word):
        self.word = word
    def prefill(self, prompt):
        print("not a reply")
        return {{"seconds": len(prompt), "word": self.word}}
    def decode(self, max_steps, seconds):
        return {{"steps": timed_steps(lambda: None, max_steps, seconds)}}
    def fill(self, prompts):
        raise ValueError("too many requests")

serve(Engine)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    started = Process(Path(sys.executable), [str(script)], tmp_path / "log", {})
    started.ask("load", word="hello")
    yield started
    started.close()


def test_replies_are_apart_from_what_is_printed(process: Process) -> None:
    reply = process.ask("prefill", prompt=[1, 2, 3])
    assert (reply["seconds"], reply["word"]) == (3, "hello")
    assert reply["peak_mib"] > 1
    assert len(process.ask("decode", max_steps=7, seconds=60.0)["steps"]) == 7


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_it_is_stopped_between_two_commands(process: Process) -> None:
    stat = Path(f"/proc/{process.pid}/stat")
    deadline = time.monotonic() + 10
    while stat.read_text().split(") ")[1][0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_reason_of_its_end_is_told(process: Process) -> None:
    with pytest.raises(PeerError, match="ended in `fill`: ValueError: too many requests"):
        process.ask("fill", prompts=[[1]])
    with pytest.raises(PeerError, match="ended"):
        process.ask("prefill", prompt=[1])


def test_a_peer_that_does_not_install_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-package"
    peer = Peer(name="none", script="none.py", packages=(str(missing),))
    with pytest.raises(PeerError, match="no-such-package"):
        environment(peer, tmp_path)
    assert not (tmp_path / "none" / "installed").exists()
