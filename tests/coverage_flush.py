"""A coverage.py plugin that also measures processes that are killed.

Ray ends its workers with SIGKILL, which leaves no time to save measurements. So every child process
of the test run saves twice a second. `[tool.coverage.run]` in pyproject.toml loads this plugin.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

INTERVAL_S = 0.5
_saving = threading.Lock()


def coverage_init(_plugins: Plugins, _options: TConfigurable) -> None:
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:  # set by coverage.py's subprocess patch
        root = str(Path(__file__).parents[1])
        inherited = os.environ.get("PYTHONPATH")
        # Child processes import this module before pytest extends their path.
        os.environ["PYTHONPATH"] = os.pathsep.join([root, inherited] if inherited else [root])
    elif coverage.Coverage.current() is None:  # a forked child saves when its work ends
        # A fork amid a save would copy locks that nobody opens again.
        os.register_at_fork(
            before=_saving.acquire, after_in_parent=_saving.release, after_in_child=_saving.release
        )
        # No daemon: it must be joined before coverage.py's last save at exit, as two concurrent
        # saves disturb each other.
        threading.Thread(target=_save_often, name="coverage-flush").start()


def _save_often() -> None:
    main = threading.main_thread()
    due = time.monotonic() + INTERVAL_S
    while main.is_alive():
        time.sleep(0.02)
        measuring = coverage.Coverage.current()
        if measuring is not None and time.monotonic() >= due:
            with _saving:
                measuring.save()
            due = time.monotonic() + INTERVAL_S
