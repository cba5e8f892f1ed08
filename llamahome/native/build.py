"""Build of the C++ extension: `torch.classes.llamahome` and `torch.ops.llamahome`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
NAME = "llamahome_native"
# No -march: the instruction set is chosen at run time, so a cache may be shared by machines.
# Arithmetic errors are values here, never traps, which lets loops be vectorised.
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")


class NativeUnavailableError(Exception):
    """Absence of the C++ kernels: they cannot be built or loaded here; the message says why."""


@functools.cache
def load_native() -> None:
    """Make the extension's classes and operators known to torch, once in a process.

    The first use builds it in about a minute, into a cache for all processes and models of a user.

    Raises:
        NativeUnavailableError: without a C++ compiler, or when the build fails.
    """
    try:
        folder = _cache_folder()
        library, complete = folder / f"{NAME}.so", folder / "complete"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "build.lock"):
            if complete.is_file():
                torch.classes.load_library(str(library))
                return
            logger.info("building the CPU kernels into %s; it takes a minute, once", folder)
            _build(folder)
            complete.touch()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise NativeUnavailableError(
            f"the CPU kernels cannot be built or loaded: {error}"
        ) from error


def _cache_folder() -> Path:
    """Name the folder of one build: sources, flags, compiler and torch decide it."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for part in (*FLAGS, torch.__version__, sys.platform, os.uname().machine, _compiler_version()):
        digest.update(part.encode() + b"\0")
    return platformdirs.user_cache_path("llamahome") / "native" / digest.hexdigest()[:16]


def _compiler_version() -> str:
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise NativeUnavailableError(
            f"there is no C++ compiler: {compiler!r} is not on PATH; install g++ 11 or later, or "
            "set CXX"
        )
    return subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout.partition("\n")[0]


def _build(folder: Path) -> None:
    (folder / "lock").unlink(missing_ok=True)  # torch's own, left by a build that was killed
    with _ninja_on_path():
        cpp_extension.load(
            name=NAME,
            sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            extra_cflags=list(FLAGS),
            build_directory=str(folder),
            is_python_module=False,
        )


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Put this Python's programs on PATH, since torch runs `ninja` by name."""
    before = os.environ["PATH"]
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
