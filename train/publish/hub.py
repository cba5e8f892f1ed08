"""Uploads to the Hugging Face hub, private unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from llamahome.models.errors import one_line
from train.errors import ExportError

REFUSED = (401, 403)


def check_push(repo_id: str, *, public: bool) -> HfApi:
    """Check token and repository before anything is written, and return the client.

    The token comes from HF_TOKEN or the hub client's login, the address from HF_ENDPOINT.

    Raises:
        ExportError: for what would make the upload fail, or publish it unasked.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ExportError("--push needs the hub, and HF_HUB_OFFLINE is set; unset it")
    token = get_token()
    if token is None:
        raise ExportError("--push needs a token that may write; set HF_TOKEN in the environment")
    api = HfApi(token=token)
    with _plain_errors(repo_id):
        api.whoami()
        try:
            is_private = api.model_info(repo_id).private
        except RepositoryNotFoundError:
            return api
    if is_private is False and not public:
        raise ExportError(
            f"--push={repo_id}: that repository is there and public; give --public to publish the "
            "model, or another name"
        )
    return api


def push(api: HfApi, repo_id: str, folder: Path, *, public: bool) -> str:
    """Create the repository if needed, upload the folder, and return its address.

    Raises:
        ExportError: when the hub refuses or does not answer; the folder stays.
    """
    with _plain_errors(repo_id, f"; the export stays in {folder}: hf upload {repo_id} {folder}"):
        api.create_repo(repo_id, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Export from LlamaHome"
        )
    return str(commit.repo_url)


@contextmanager
def _plain_errors(repo_id: str, more: str = "") -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        cure = (
            "set HF_TOKEN to a token that may write there"
            if status in REFUSED
            else "try again later"
        )
        raise ExportError(
            f"--push={repo_id}: the hub answered {status} ({one_line(error)}); {cure}{more}"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, RuntimeError) as error:  # one file: RuntimeError
        raise ExportError(
            f"--push={repo_id}: the hub cannot be reached ({one_line(_cause(error))}); go online, "
            f"or leave --push out{more}"
        ) from error


def _cause(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
