"""A driver that is killed leaves neither processes nor folders."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
# It stands for Ray: a process of another session that has the token's path in its environment.
DRIVER = """
import os, subprocess, sys, time
from cluster.session import _private_dir
with _private_dir() as folder:
    (folder / "ray").mkdir()
    token = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token")}
    sleeping = [sys.executable, "-c", "import time; time.sleep(3600)"]
    agent = subprocess.Popen(sleeping, env=token, start_new_session=True)
    other = subprocess.Popen(sleeping, env=dict(os.environ), start_new_session=True)
    print(folder, agent.pid, other.pid, flush=True)
    sys.stdin.read()
    agent.kill()
    other.kill()
"""


def start() -> tuple[subprocess.Popen[str], Path, psutil.Process, psutil.Process]:
    """Start a driver; return it, its folder, and two processes of which one is its Ray's."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    folder, agent, other = driver.stdout.readline().split()
    return driver, Path(folder), psutil.Process(int(agent)), psutil.Process(int(other))


def until(condition: Callable[[], bool]) -> None:
    while not condition():  # pytest-timeout ends it
        time.sleep(0.02)


def test_a_killed_driver_leaves_nothing_of_its_ray() -> None:
    driver, folder, agent, other = start()
    assert folder.is_dir()
    with driver:
        driver.kill()
    until(lambda: not folder.exists())
    assert not agent.is_running()
    assert other.is_running()
    other.kill()


def test_a_driver_that_ends_cleans_up_itself() -> None:
    driver, folder, *_ = start()
    with driver:
        driver.communicate("")
    assert driver.returncode == 0
    assert not folder.exists()
