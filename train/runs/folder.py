"""Folders of runs, as they are read after the fact: config, records, state, size."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamahome.config import TrainRoot
from llamahome.models.folders import finished_folders, remove_folder
from train import metrics
from train.metrics import Record

RUN_FILE = "run.json"
MODEL = "model"  # the exported model, of a run that has ended
ADAPTER = "adapter"  # the adapters of a LoRA run whose model has them merged in
MAPPINGS = ("policy.pattern",)  # values that are mappings, not sections of keys


class RunsError(Exception):
    """A run that cannot be found, read, drawn or removed; the message is for the user."""


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config by dotted key, as the command line spells it."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and prefix + key not in MAPPINGS:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


DEFAULTS = flattened(asdict(TrainRoot()))


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder has it.

    Attributes:
        directory: its folder.
        config: its config by dotted key; a run of an older version may lack some.
        records: its records, oldest first.
    """

    directory: Path
    config: dict[str, Any]
    records: list[Record]

    @property
    def name(self) -> str:
        return self.directory.name

    def value(self, key: str) -> Any:
        """Return a value of the config, or its default where the run is older than the key."""
        return self.config.get(key, DEFAULTS.get(key))

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of the config whose value is not the default."""
        missing = object()
        return {k: v for k, v in self.config.items() if DEFAULTS.get(k, missing) != v}

    @cached_property
    def losses(self) -> dict[int, float]:
        """Training loss by step."""
        return metrics.series(self.records, "loss")

    @cached_property
    def held_out(self) -> dict[int, float]:
        """Held-out loss by step."""
        return metrics.series(self.records, "eval_loss")

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return max(self.losses, default=0)

    @property
    def state(self) -> str:
        """Finished, failed or stopped.

        Workers that were started again after a failure leave later records, so only a failure at
        the end is why a run has no model. A run that still trains reads as stopped.
        """
        if (self.directory / "model").is_dir():
            return "finished"
        last = next((record for record in reversed(self.records) if "warning" not in record), {})
        return f"failed: {last['failure']}" if "failure" in last else "stopped"


def run_folders(runs_dir: Path) -> list[Path]:
    """Return the folders of runs, the last started first."""
    folders = [folder for folder in finished_folders(runs_dir) if (folder / RUN_FILE).is_file()]
    return sorted(folders, key=lambda folder: (folder / RUN_FILE).stat().st_mtime, reverse=True)


def folder_size(directory: Path) -> int:
    """Return the bytes of a folder's files, without what links lead to."""
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            with suppress(FileNotFoundError):  # a run that trains replaces its checkpoints
                total += Path(folder, file).lstat().st_size
    return total


def find_run(runs_dir: Path, name: str) -> Path:
    """Return the folder of the run of this name.

    Raises:
        RunsError: when there is none; names those that are there.
    """
    folders = {folder.name: folder for folder in run_folders(runs_dir)}
    if name not in folders:
        there = f"runs there: {', '.join(folders)}" if folders else "there are no runs"
        raise RunsError(f"no run {name!r} in {runs_dir}; {there}")
    return folders[name]


def read_run(directory: Path) -> SavedRun:
    """Read a run's config and records.

    Raises:
        RunsError: for files that are damaged.
    """
    try:
        config = json.loads((directory / RUN_FILE).read_text())
        if not isinstance(config, dict):
            raise ValueError(f"{RUN_FILE} holds no config")
        return SavedRun(directory, flattened(config), metrics.read(directory))
    except (OSError, ValueError) as error:
        raise RunsError(f"run {directory.name} cannot be read: {error}") from error


def dependants(directory: Path) -> list[str]:
    """Return the runs next to this one that load its model, by name.

    A second stage reads the first one's model when it is resumed, and an adapter needs its base.
    """
    model = str((directory / "model").resolve())
    needing = []
    for folder in run_folders(directory.parent):
        with suppress(RunsError):
            run = read_run(folder)
            of_stage = run.value("trainer.dense_steps") and f"{run.name}-dense" == directory.name
            if folder != directory and (of_stage or model in _bases(run)):
                needing.append(run.name)
    return needing


def _bases(run: SavedRun) -> set[str]:
    """Return the model that a run still has to load, and the base of its exported adapter."""
    bases = set() if run.state == "finished" else {str(run.value("model.name"))}
    with suppress(OSError, ValueError):
        adapter = json.loads((run.directory / "model" / "adapter_config.json").read_text())
        bases.add(str(adapter.get("base_model_name_or_path")))
    return bases


def check_removable(directory: Path) -> None:
    """Check that a run's folder itself is in the runs folder.

    Raises:
        RunsError: for a link, which may lead to a folder that others use.
    """
    if directory.is_symlink():
        raise RunsError(
            f"run {directory.name} is a link to {directory.resolve()}; remove that folder yourself"
        )


def remove_run(directory: Path) -> None:
    """Delete a run's folder; links in it are deleted, not followed.

    Raises:
        RunsError: for a folder that is a link, or that cannot be deleted.
    """
    check_removable(directory)
    try:
        remove_folder(directory)
    except OSError as error:
        raise RunsError(f"run {directory.name} is not removed completely: {error}") from error
