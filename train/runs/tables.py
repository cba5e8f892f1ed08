"""Tables of runs for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from train import metrics
from train.metrics import Record
from train.runs.folder import SavedRun, folder_size
from train.runs.sweeps import SweptRun

NONE = "-"
# They differ between any two runs, and the columns' heads say them already.
PLACE = ("trainer.run_name", "trainer.output_dir")


def run_list(runs: Sequence[SavedRun], sweeps: Mapping[str, tuple[str, SweptRun]]) -> Table:
    """Lay out one line for each run.

    Args:
        sweeps: by a run's name its sweep, and what the sweep says of it.
    """
    table = Table()
    table.add_column("run", overflow="fold", min_width=12)
    if sweeps:
        table.add_column("in a sweep", overflow="fold")
    for column in ("model", "policy", "method"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "held-out loss"):
        table.add_column(column, justify="right")
    table.add_column("state", overflow="fold")
    table.add_column("size", justify="right")
    for run in runs:
        _add(
            table,
            run.name,
            *([_changes(run, sweeps)] if sweeps else []),
            _model(run),
            _policy(run),
            _method(run),
            _steps(run),
            " -> ".join(_ends(run)) if run.held_out else NONE,
            _state(run, sweeps),
            decimal(folder_size(run.directory)),
        )
    return table


def _changes(run: SavedRun, sweeps: Mapping[str, tuple[str, SweptRun]]) -> str:
    return " ".join(sweeps[run.name][1].overrides) if run.name in sweeps else NONE


def _state(run: SavedRun, sweeps: Mapping[str, tuple[str, SweptRun]]) -> str:
    """Return a run's state; only its sweep knows that it was to end early."""
    of_sweep = sweeps[run.name][1].state if run.name in sweeps else ""
    return of_sweep if of_sweep.startswith("stopped early") else run.state


def pairs(title: str, values: Mapping[str, Any]) -> Table:
    """Lay out names and values, one pair a line."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in values.items():
        _add(table, name, spelled(value))
    return table


def figures(run: SavedRun) -> dict[str, str]:
    """Return the final figures of a run by name."""
    return {name: figure(run) for name, figure in FIGURES.items()}


def answers(run: SavedRun) -> Table | None:
    """Lay out the sample answers of the last evaluation; None for a run without any."""
    samples = metrics.samples(run.directory)
    if not samples:
        return None
    step = samples[-1]["step"]
    own = [sample for sample in samples if sample["step"] == step]
    shown = {sample["prompt"]: sample["answer"] for sample in own}
    return pairs(f"samples at step {step:,}", shown)


def last_records(records: Sequence[Record]) -> str:
    """Return one line for each record."""
    return "\n".join(
        "  ".join(f"{name} {rounded(value)}" for name, value in record.items())
        for record in records
    )


def comparison(runs: Sequence[SavedRun]) -> Table:
    """Lay out a column for each run: the keys in which they differ, and their final figures."""
    table = Table()
    table.add_column("")
    for run in runs:
        table.add_column(Text(run.name), overflow="fold")
    for key in _differing(runs):
        _add(table, key, *(spelled(run.value(key)) for run in runs))
    table.add_section()
    for name, figure in FIGURES.items():
        _add(table, name, *map(figure, runs))
    return table


def spelled(value: Any) -> str:
    """Return a value of a config in full, as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def rounded(value: Any) -> str:
    """Return a measured value with few digits, and thousands apart."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(rounded, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _add(table: Table, *cells: str) -> None:
    """Add a row of plain text: brackets in a name are no markup."""
    table.add_row(*map(Text, cells))


def _differing(runs: Sequence[SavedRun]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in PLACE)
    return [key for key in keys if any(run.value(key) != runs[0].value(key) for run in runs)]


def _model(run: SavedRun) -> str:
    """Return the model's name, for a folder its last part, for a run's model the run's name."""
    path = Path(run.value("model.name"))
    if not path.is_absolute():
        return str(path)
    return path.parent.name if path.name == "model" else path.name


def _policy(run: SavedRun) -> str:
    name, budget = run.value("policy.name"), run.value("policy.budget")
    return name if budget is None else f"{name} {budget:,}"


def _method(run: SavedRun) -> str:
    teacher = " + KL" if run.value("trainer.kl_weight") else ""
    return f"{run.value('trainer.method')}, {run.value('trainer.objective')}{teacher}"


def _steps(run: SavedRun) -> str:
    return f"{run.steps:,}/{run.value('trainer.steps'):,}"


def _ends(run: SavedRun) -> tuple[str, str]:
    """Return the first and the last held-out loss."""
    losses = list(run.held_out.values())
    return (f"{losses[0]:.4f}", f"{losses[-1]:.4f}") if losses else (NONE, NONE)


def _lowest(run: SavedRun) -> str:
    if not run.held_out:
        return NONE
    step = min(run.held_out, key=run.held_out.__getitem__)
    return f"{run.held_out[step]:.4f} (step {step:,})"


def _last(run: SavedRun, name: str) -> str:
    values = list(metrics.series(run.records, name).values())
    return rounded(values[-1]) if values else NONE


def _speed(run: SavedRun) -> str:
    speeds = metrics.series(run.records, "tokens_per_second").values()
    return f"{median(speeds):,.0f}" if speeds else NONE


def _utilisation(run: SavedRun) -> str:
    """Return the median MFU, and the peak that it is a share of."""
    shares = metrics.series(run.records, "mfu").values()
    last = next((record for record in reversed(run.records) if "peak" in record), None)
    if not shares or last is None:
        return NONE
    return f"{median(shares):.1%} of {last['peak_flops'] / 1e12:.4g} TFLOP/s ({last['peak']})"


def _memory(run: SavedRun) -> str:
    """Return the most memory of each worker."""
    each = metrics.series(run.records, "memory_gb").values()
    most = [max(of_worker) for of_worker in zip(*each, strict=False)]
    return ", ".join(f"{gigabytes:.1f} GB" for gigabytes in most) or NONE


def _time_left(run: SavedRun) -> str:
    left = list(metrics.series(run.records, "seconds_left").values())
    return str(timedelta(seconds=round(left[-1]))) if left else NONE


FIGURES: dict[str, Callable[[SavedRun], str]] = {
    "steps": _steps,
    "tokens": lambda run: _last(run, "tokens"),
    "training loss, last": lambda run: _last(run, "loss"),
    "held-out loss, first": lambda run: _ends(run)[0],
    "held-out loss, lowest": _lowest,
    "held-out loss, last": lambda run: _ends(run)[1],
    "gradient norm, last": lambda run: _last(run, "grad_norm"),
    "tokens/s, median": _speed,
    "MFU, median": _utilisation,
    "memory by worker, most": _memory,
    "time left at the last step": _time_left,
    "state": lambda run: run.state,
    "size": lambda run: decimal(folder_size(run.directory)),
}
