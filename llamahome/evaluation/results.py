"""Figures of an evaluation, and the file that they are kept in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A task on a text, in contexts of one length."""

    task: str
    text: str
    context: int

    def __str__(self) -> str:
        return f"{self.task}, {Path(self.text).stem}, {self.context}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one task under one policy.

    Attributes:
        model: name and stamp of the folder it came from.
        entries: kept per KV head, on average; None for dense.
        settings: what else the task's numbers depend on, the runner among it.
        values: the task's result, with the fields of its dataclass.
    """

    model: str
    task: str
    text: str
    context: int
    policy: dict[str, Any]
    entries: int | None
    settings: dict[str, Any]
    values: dict[str, Any]

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.text, self.context)

    @property
    def key(self) -> str:
        """The facts that make two figures the same, so that one of them is not measured."""
        facts = {name: value for name, value in asdict(self).items() if name != "values"}
        return json.dumps(facts, sort_keys=True)


def read_results(file: Path) -> list[Result]:
    """Return the results of a file, without a last line that was cut short.

    Lines of a version with other fields are left out, so their figures are measured again.
    """
    if not file.is_file():
        return []
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    names = {field.name for field in fields(Result)}
    return [Result(**found) for line in whole if (found := json.loads(line)).keys() == names]


def drop_cut_line(file: Path) -> None:
    """Remove a figure that was being written when the process died; it is measured again."""
    if file.is_file():
        text = file.read_text()
        file.write_text(text[: text.rfind("\n") + 1])


def folder_stamp(folder: Path) -> str:
    """Return a short text that changes when a model's files do, without reading gigabytes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
