"""The manager that finds, lists, verifies and removes models by name."""

from __future__ import annotations

import builtins
import difflib
import logging
from pathlib import Path

from huggingface_hub import HfApi

from llamahome.config.cache_folder import CACHE, cache_folder
from llamahome.config.writable import check_writable
from llamahome.models.adapter_chain import adapter_chain, is_adapter
from llamahome.models.checksums import verify_checksums
from llamahome.models.describe import Kind, ModelInfo, describe_folder
from llamahome.models.embedded import EMBEDDED_MODEL, ensure_embedded
from llamahome.models.errors import ModelError, ModelNotFoundError
from llamahome.models.folders import finished_folders, is_folder_name, remove_folder
from llamahome.models.hub import ensure_downloaded, hub_folder, hub_id, is_hub_id

logger = logging.getLogger(__name__)

CURES: dict[Kind, str] = {
    "embedded": "remove the model and use it again: it is converted anew",
    "hub": "remove the model and use it again: it is downloaded anew",
    "run": "resume the run, which exports its model anew from the last checkpoint",
    "local": "copy it again from where it came",
}


class ModelManager:
    """Models by name: the embedded one, a fine-tuned run, a local folder, a hub id.

    Args:
        cache_dir: folder of models and runs; None takes LLAMAHOME_CACHE from the environment, or
            else the user's cache directory.
        hub: client of the hub; None makes the default one, which reads HF_TOKEN and HF_ENDPOINT.
    """

    def __init__(self, cache_dir: Path | None = None, hub: HfApi | None = None) -> None:
        self.cache_dir = cache_folder(cache_dir)
        self._hub_dir = self.cache_dir / "hub"
        self._hub = hub or HfApi()

    @property
    def runs_dir(self) -> Path:
        """Folder of fine-tuned runs; the model of run `name` is `runs_dir/name/model`."""
        return self.cache_dir / "runs"

    def resolve(self, name: str, revision: str | None = None) -> Path:
        """Return a model's Hugging Face folder; convert or download the model first if needed.

        Raises:
            ModelNotFoundError: for a name that leads to no model; says what was tried.
            ModelError: for a revision of a model that is not from the hub, or a gated model.
            ConfigError: for a cache directory that cannot be written to.
        """
        kind, folder = self._locate(name, revision)
        if kind in ("embedded", "hub") and not folder.is_dir():
            check_writable(folder.parent, CACHE)
        if kind == "embedded":
            ensure_embedded(folder)
        elif kind == "hub":
            ensure_downloaded(folder, self._hub, name, revision)
        return folder

    def list(self) -> builtins.list[ModelInfo]:
        """Describe the embedded model (converted if needed), all runs and downloaded hub models.

        A model that cannot be described is left out with a warning.
        """
        runs = [run.name for run in finished_folders(self.runs_dir) if (run / "model").is_dir()]
        names: builtins.list[tuple[str, str | None]] = [(EMBEDDED_MODEL, None)]
        names += [(run, None) for run in runs]
        names += [hub_id(folder) for folder in finished_folders(self._hub_dir)]
        infos = []
        for name, revision in names:
            try:
                infos.append(self.describe(name, revision))
            except ModelError as error:
                logger.warning("%s is left out: %s", name, error)
        return infos

    def describe(
        self, name: str, revision: str | None = None, *, budget: float | None = None
    ) -> ModelInfo:
        """Describe a model from its config and the headers of its weights.

        Args:
            budget: entries per KV head in one slot, for `memory_bytes`, or up to 1 a share of the
                context; None takes the average of the carried policy, or else the whole context.
        """
        kind, folder = self._present(name, revision)
        chain = adapter_chain(folder, lambda base: self._present(base, None)[1])
        return describe_folder(chain, name, kind, revision, budget)

    def verify(self, name: str, revision: str | None = None) -> int:
        """Compare a model's files with their recorded checksums and return how many there are.

        Raises:
            ModelCorruptError: for a missing or changed file; says the cure.
            ModelError: when no checksums were recorded.
        """
        kind, folder = self._present(name, revision)
        return verify_checksums(folder, CURES[kind])

    def remove(self, name: str, revision: str | None = None) -> None:
        """Delete a model from the cache; a run goes with its checkpoints."""
        kind, folder = self._locate(name, revision)
        target = folder.parent if kind == "run" else folder
        if kind == "local" or not target.resolve().is_relative_to(self.cache_dir):
            raise ModelError(f"{name} lies outside of {self.cache_dir}; remove it yourself")
        if not remove_folder(target):
            raise ModelNotFoundError(f"{name} is not in {self.cache_dir}; nothing to remove")
        logger.info("removed %s", target)

    def _locate(self, name: str, revision: str | None) -> tuple[Kind, Path]:
        """Return the kind of model that `name` means, and its present or future folder."""
        kind, folder = self._interpret(name, revision)
        if revision is not None and kind != "hub":
            raise ModelError(
                f"model.revision={revision!r} only goes with a hub id; {name} is {folder}"
            )
        return kind, folder

    def _interpret(self, name: str, revision: str | None) -> tuple[Kind, Path]:
        if name == EMBEDDED_MODEL:
            return "embedded", self.cache_dir / "embedded" / EMBEDDED_MODEL
        run = self.runs_dir / name / "model"
        if is_folder_name(name) and run.is_dir():
            return "run", run
        local = Path(name).expanduser().absolute()
        if (local / "config.json").is_file() or is_adapter(local):
            return "local", local
        if is_hub_id(name):
            return "hub", hub_folder(self._hub_dir, name, revision)
        raise ModelNotFoundError(self._not_found(name))

    def _present(self, name: str, revision: str | None) -> tuple[Kind, Path]:
        """Locate a model that must be there already; nothing is downloaded."""
        kind, folder = self._locate(name, revision)
        if kind == "embedded":
            ensure_embedded(folder)
        if not folder.is_dir():
            raise ModelNotFoundError(f"{name} is not downloaded yet; its first use downloads it")
        return kind, folder

    def _not_found(self, name: str) -> str:
        runs = [run.name for run in finished_folders(self.runs_dir)]
        hub = [hub_id(folder)[0] for folder in finished_folders(self._hub_dir)]
        close = difflib.get_close_matches(name, [EMBEDDED_MODEL, *runs, *hub], n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        return (
            f"no model {name!r}: it is not {EMBEDDED_MODEL}, not a run with a model in "
            f"{self.runs_dir}, not a folder with a config.json or adapter_config.json, and not a "
            f"hub id (organisation/model).{hint}"
        )
