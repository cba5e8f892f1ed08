"""A process under measurement: it answers commands, and is stopped while others measure."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "peers"
PATIENCE = 900  # seconds until an answer is given up


class PeerError(Exception):
    """An engine that could not be installed or started, or did not answer."""


class Process:
    """An engine in a process of its own, which speaks benchmarks/peers/protocol.py.

    Between two commands it is stopped (SIGSTOP), so that no thread of it spins for the cores.

    Args:
        arguments: what follows the python on its command line.
        log: file for its stderr.
        env: variables added to ours.
    """

    def __init__(
        self, python: Path, arguments: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [str(python), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **env},
                # A group, so that its children are stopped with it; in our session, so that the
                # kernel ends it when we end (a stopped group without a parent gets SIGHUP).
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        """Return the reply to one command.

        Raises:
            PeerError: when the engine ended or does not answer in time.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        line = json.dumps({"cmd": cmd, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(f"it ended before `{cmd}`: {last_line(self._log)}") from error
        reply = self._reply(cmd)
        self._signal(signal.SIGSTOP)
        return reply

    def _reply(self, cmd: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            raise PeerError(f"no answer to `{cmd}` in {PATIENCE} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(f"it ended in `{cmd}`: {last_line(self._log)} ({self._log})")
        return dict(json.loads(line))

    def close(self) -> None:
        """Kill the process and its children."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # a command that it never read
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
