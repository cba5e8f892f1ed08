"""Folders of sweeps, next to those of their runs: which runs, what each changes, its state."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llamahome.models.folders import finished_folders, is_folder_name
from train.runs.folder import RunsError, SavedRun, find_run, run_folders

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        name: its folder, next to the sweep's; None where it was refused without one.
        overrides: the arguments in which it differs from the sweep's other runs.
        state: in words, with the reason.
    """

    name: str | None
    overrides: list[str]
    state: str


def write_sweep(directory: Path, runs: list[SweptRun]) -> None:
    """Write a sweep's runs into its folder, completely or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{SWEEP_FILE}.partial"
    partial.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    os.replace(partial, directory / SWEEP_FILE)


def read_sweep(directory: Path) -> list[SweptRun]:
    """Return the runs of a sweep; none for a folder that is no sweep's.

    Raises:
        RunsError: for a file that is damaged.
    """
    file = directory / SWEEP_FILE
    if not file.is_file():
        return []
    try:
        return [SweptRun(**run) for run in json.loads(file.read_text())]
    except (OSError, TypeError, ValueError) as error:
        raise RunsError(f"sweep {directory.name} cannot be read: {error}") from error


def sweeps_of_runs(runs_dir: Path) -> dict[str, tuple[str, SweptRun]]:
    """Return by a run's name its sweep's name, and what the sweep says of it.

    Raises:
        RunsError: for a sweep whose file is damaged.
    """
    return {
        run.name: (folder.name, run)
        for folder in finished_folders(runs_dir)
        for run in read_sweep(folder)
        if run.name is not None
    }


def together(
    runs: Sequence[SavedRun], sweeps: Mapping[str, tuple[str, SweptRun]]
) -> list[SavedRun]:
    """Return runs in their order, but those of a sweep behind the first of them, by name."""
    groups: dict[str, list[SavedRun]] = {}
    for run in runs:
        sweep = sweeps[run.name][0] if run.name in sweeps else run.name
        groups.setdefault(sweep, []).append(run)
    return [run for group in groups.values() for run in sorted(group, key=lambda run: run.name)]


def folders_of(runs_dir: Path, name: str) -> list[Path]:
    """Return the folder of the run of this name, or those of the runs of the sweep of this name.

    Raises:
        RunsError: when there is neither.
    """
    names = [run.name for run in read_sweep(runs_dir / name)] if is_folder_name(name) else []
    if not names:
        return [find_run(runs_dir, name)]
    return [folder for folder in sorted(run_folders(runs_dir)) if folder.name in names]
