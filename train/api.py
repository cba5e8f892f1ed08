"""Training from Python: `await train_model(config, data, callbacks)`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llamahome.config import ConfigError, TrainRoot
from llamahome.models import ModelManager
from train.callbacks import Callback
from train.compose import compose_root
from train.errors import StoppedError
from train.pipeline import TrainingPipeline, TrainingResult
from train.run import runs_folder

Data = str | Path | Iterable[Mapping[str, Any]]


async def train_model(
    config: TrainRoot | Sequence[str],
    data: Data | None = None,
    callbacks: Sequence[Callback | Any] = (),
    *,
    console: Console | None = None,
    manager: ModelManager | None = None,
) -> TrainingResult:
    """Train, or resume the run that `trainer.run_name` names, and export the model.

    A task that is cancelled waits until its run has saved a checkpoint; the same name goes on.

    Args:
        config: a run's config, or overrides of conf/train.yaml, as `python -m train` takes them.
        data: in place of data.train_file: a path, or records as `data.format` has them. Records
            are written once into the folder of runs, where all workers read them.
        callbacks: objects with methods of `train.callbacks.Callback`.
        console: shows progress; None is standard output.
        manager: finds the model and knows where runs live; None is the default one.

    Returns:
        The run's result, `stopped` when a callback has stopped it.

    Raises:
        ConfigError, DataError, ModelError, TrainingError: as `TrainingPipeline.run`.
    """
    found = manager or ModelManager()
    root = await asyncio.to_thread(_root, config, data, found)
    pipeline = TrainingPipeline(root, manager=found, console=console, callbacks=callbacks)
    training = asyncio.ensure_future(asyncio.to_thread(_result, pipeline))
    try:
        return await asyncio.shield(training)
    except asyncio.CancelledError:
        pipeline.stop()
        await asyncio.wait([training])
        raise


def _result(pipeline: TrainingPipeline) -> TrainingResult:
    try:
        return pipeline.run()
    except StoppedError:
        return pipeline.stopped_result()


def _root(config: TrainRoot | Sequence[str], data: Data | None, manager: ModelManager) -> TrainRoot:
    if isinstance(config, str):
        raise ConfigError(f"config={config!r} is one text; give a list of overrides")
    if data is None or isinstance(data, str | Path):
        return _with_file(config, None if data is None else str(data))
    runs_dir = runs_folder(_with_file(config, "records"), manager)
    return _with_file(config, str(_written(data, runs_dir)))


def _with_file(config: TrainRoot | Sequence[str], file: str | None) -> TrainRoot:
    if not isinstance(config, TrainRoot):
        return compose_root(config, file)
    return config if file is None else replace(config, data=replace(config.data, train_file=file))


def _written(records: Iterable[Mapping[str, Any]], runs_dir: Path) -> Path:
    """Write records into a file that is named by its content, and return it.

    Raises:
        ConfigError: for a record that is no JSON object.
    """
    lines = []
    for number, record in enumerate(records):
        try:
            lines.append(json.dumps(dict(record)))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"data[{number}] is no JSON object: {error}") from error
    content = "".join(f"{line}\n" for line in lines).encode()
    file = runs_dir / "data" / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, file)
    return file
