"""Hub models, each downloaded once into a plain folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from llamahome.models.checksums import write_checksums
from llamahome.models.errors import ModelError, ModelNotFoundError
from llamahome.models.folders import build_once

logger = logging.getLogger(__name__)

# Weights as safetensors only: *.bin, *.pt and *.pth are pickles, and a pickle can run code.
WANTED = ["model*.safetensors", "adapter_model.safetensors", "*.json", "*.jinja", "*.txt"]
WANTED += ["policy.safetensors", "tokenizer.model", "LICENSE*"]
SUBFOLDERS = "*/*"


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form `organisation/model`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def hub_folder(parent: Path, repo_id: str, revision: str | None) -> Path:
    """Return the folder for a hub model: `parent/org--name` or `parent/org--name@revision`."""
    suffix = "" if revision is None else "@" + quote(revision, safe="")
    return parent / (repo_id.replace("/", "--") + suffix)


def hub_id(folder: Path) -> tuple[str, str | None]:
    """Return the hub id and revision from which `hub_folder` made `folder`."""
    repo, _, revision = folder.name.partition("@")
    return repo.replace("--", "/", 1), unquote(revision) or None


def ensure_downloaded(folder: Path, hub: HfApi, repo_id: str, revision: str | None) -> None:
    """Download `repo_id` into `folder`, unless that was done before.

    An interrupted download is resumed. A default branch is not followed when it moves: remove the
    model to get its newest state.

    Raises:
        ModelNotFoundError: for an unknown repository or revision, or a hub out of reach.
        ModelError: for a gated repository, or one without safetensors.
    """

    def download(partial: Path) -> None:
        with _hub_errors(repo_id, revision):
            _download(partial, hub, repo_id, revision)

    build_once(folder, download)


def _download(partial: Path, hub: HfApi, repo_id: str, revision: str | None) -> None:
    # The dry run fails when the hub does not answer; a real run would then take the files of an
    # interrupted download for the whole model.
    plan = hub.snapshot_download(
        repo_id,
        revision=revision,
        local_dir=partial,
        allow_patterns=WANTED,
        ignore_patterns=SUBFOLDERS,
        dry_run=True,
    )
    names = [file.filename for file in plan]
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{repo_id} has no weights as safetensors; pickled weights (*.bin, *.pt) are never "
            "loaded, as a pickle can run code. Convert them and give the folder's path"
        )
    gigabytes = sum(file.file_size or 0 for file in plan) / 1e9
    logger.info("downloading %s: %d files, %.2f GB", repo_id, len(names), gigabytes)
    hub.snapshot_download(
        repo_id, revision=plan[0].commit_hash, local_dir=partial, allow_patterns=names
    )
    missing = [name for name in names if not (partial / name).is_file()]
    if missing:
        raise ModelError(f"{repo_id} came without {missing[0]}; try again when the hub answers")
    shutil.rmtree(partial / ".cache")  # the client's own bookkeeping of the download
    write_checksums(partial)


@contextmanager
def _hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the client's errors into ours, each with its cure."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} has no revision {revision!r} on the hub") from error
    except HTTPError as error:
        raise _refusal(repo_id, error) from error
    except (DryRunError, LocalEntryNotFoundError) as error:
        raise _refusal(repo_id, error.__cause__ or error) from error


def _refusal(repo_id: str, cause: BaseException) -> ModelError:
    if isinstance(cause, GatedRepoError):
        return ModelError(
            f"{repo_id} is gated: accept its licence on the hub's page of the model, then set "
            "HF_TOKEN in the environment to a token that may read it"
        )
    if isinstance(cause, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{repo_id} is not on the hub, or private: check the spelling, or set HF_TOKEN in the "
            "environment to a token that may read it"
        )
    return ModelNotFoundError(
        f"{repo_id} is not downloaded and the hub cannot be reached ({type(cause).__name__}): go "
        "online, unset HF_HUB_OFFLINE, or give the path of a folder that has the model"
    )
