"""Process of a peer: it answers, is stopped between commands, and reports why it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.process import SCRIPTS, PeerError, Process

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


def test_printed_lines_do_not_mix_with_replies(process: Process) -> None:
    reply = process.ask("prefill", prompt=[1, 2, 3])
    assert (reply["seconds"], reply["word"]) == (3, "hello")
    assert reply["peak_mib"] > 1
    assert len(process.ask("decode", max_steps=7, seconds=60.0)["steps"]) == 7


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_the_process_is_stopped_between_two_commands(process: Process) -> None:
    stat = Path(f"/proc/{process.pid}/stat")
    deadline = time.monotonic() + 60
    while stat.read_text().split(") ")[1][0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_names_the_reason_of_the_end(process: Process) -> None:
    with pytest.raises(PeerError, match="ended in `fill`: ValueError: too many requests"):
        process.ask("fill", prompts=[[1]])
    with pytest.raises(PeerError, match="ended"):
        process.ask("prefill", prompt=[1])
