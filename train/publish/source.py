"""The model that is exported: a run's, or any model by name or folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llamahome.config import ModelConfig
from llamahome.models import EMBEDDED_MODEL, FoundModel, ModelManager, find_model
from llamahome.models.adapter_chain import ADAPTER_CONFIG, is_adapter
from llamahome.models.folders import is_folder_name
from llamahome.models.hub import is_hub_id
from llamahome.models.json_files import read_json
from train.errors import ExportError
from train.runs.folder import ADAPTER, MODEL, RUN_FILE, SavedRun, read_run

# The embedded model on the hub; its weights here are those of a 4-bit file.
EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_LICENSE = "apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to export.

    Attributes:
        name: the run's name, or the last part of the model's.
        found: its folders; an adapter comes before its base. Weights load in float32.
        run: the run that trained it, if it is one's.
        base_id: the hub id that it was trained from, or None for a base that is not on the hub.
    """

    name: str
    found: FoundModel
    run: SavedRun | None
    base_id: str | None

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter, if there is one."""
        return self.found.chain[0] if len(self.found.chain) > 1 else None


def find_source(
    name: str, runs_dir: Path, manager: ModelManager, base_id: str | None = None
) -> Source:
    """Find a model by a run's name or folder, or by a model's folder, embedded name or hub id.

    Args:
        base_id: hub id of its base; None looks it up.

    Raises:
        ExportError: for a run without a model.
        RunsError, ModelError: for what cannot be found or read.
    """
    run = _run(name, runs_dir)
    if run is not None and not (run.directory / MODEL).is_dir():
        raise ExportError(
            f"run {run.name} has no model ({run.state}); give its command again, with "
            f"trainer.run_name={run.name}, and it goes on and exports its model"
        )
    folder = manager.resolve(name) if run is None else _folder(run)
    found = find_model(ModelConfig(name=str(folder), dtype="float32"), manager)
    return Source(
        name=Path(name).name if run is None else run.name,
        found=found,
        run=run,
        base_id=base_id or _base_id(name, found, runs_dir),
    )


def adapter_base_id(source: Source) -> str | None:
    """Return the hub id of the very base that the adapter sits on, if it has one."""
    assert source.adapter is not None
    return _hub_id(read_json(source.adapter / ADAPTER_CONFIG)["base_model_name_or_path"])


def _run(name: str, runs_dir: Path) -> SavedRun | None:
    path = Path(name).expanduser().absolute()
    places = [runs_dir / name] if is_folder_name(name) else []
    places += [path, path.parent] if path.name in (MODEL, ADAPTER) else [path]
    return next((read_run(place) for place in places if (place / RUN_FILE).is_file()), None)


def _folder(run: SavedRun) -> Path:
    """Return the run's adapter, so that it can be merged in float32, or else its model."""
    model, adapter = run.directory / MODEL, run.directory / ADAPTER
    return adapter if is_adapter(adapter) and not is_adapter(model) else model


def _base_id(name: str, found: FoundModel, runs_dir: Path) -> str | None:
    """Follow runs that were trained from runs down to a model of the hub."""
    seen = set[str]()
    while name not in seen:
        seen.add(name)
        run = _run(name, runs_dir)
        if run is None:
            break
        name = run.value("model.name")
    own = _hub_id(name)
    if own is None and len(found.chain) > 1:
        own = _hub_id(read_json(found.chain[-2] / ADAPTER_CONFIG)["base_model_name_or_path"])
    return own


def _hub_id(name: str) -> str | None:
    if name == EMBEDDED_MODEL:
        return EMBEDDED_ID
    return name if is_hub_id(name) and not Path(name).exists() else None
